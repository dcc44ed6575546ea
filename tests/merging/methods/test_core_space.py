"""Core Space against a dense implementation written from the paper (arXiv:2509.17786)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.merging.methods.core_space import CORE_SPACE
from tests.merging.methods.factor_cases import (
    LAYERS,
    close,
    joint_of,
    low_rank,
    merged_deltas,
    products,
    random_factors,
    svd,
    total,
)
from tests.merging.methods.test_tsv import tsv_merge
from tests.merging.methods.ties_of_papers import ties


def core_space(
    factors: Sequence[tuple[np.ndarray, np.ndarray]],
    scales: Sequence[float],
    weights: Sequence[float],
    within: str,
    density: float,
) -> np.ndarray:
    left = svd(np.hstack([b for b, _ in factors]))[0]
    right = svd(np.vstack([a for _, a in factors]))[2]
    cores = [left.T @ (s * b @ a) @ right.T for (b, a), s in zip(factors, scales, strict=True)]
    match within:
        case "sum":
            merged = sum(w * core for core, w in zip(cores, weights, strict=True))
        case "ties":
            merged = ties(cores, weights, density)
        case _:
            merged = tsv_merge(cores, weights)
    return left @ merged @ right


@pytest.mark.parametrize(
    ("within", "density"),
    [("sum", 1.0), ("tsv", 1.0), ("ties", 1.0), ("ties", 0.5), ("ties", 0.1), ("ties", 0.0)],
)
@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 6, 3)])
def test_dense(tmp_path: Path, within: str, density: float, ranks: tuple[int, ...]) -> None:
    adapters = [random_factors(number, rank) for number, rank in enumerate(ranks)]
    scales, weights = [0.5, 2.0, 1.0], [0.7, -0.3, 1.5]
    asked = {"within": within} | ({"density": density} if within == "ties" else {})
    found = merged_deltas(tmp_path, adapters, scales, "core_space", weights, **asked)
    for name in LAYERS:
        own = [adapter[name] for adapter in adapters]
        close(found[name], core_space(own, scales, weights, within, density))


@settings(max_examples=60, deadline=None)
@given(case=products(), within=st.sampled_from(["ties", "tsv"]))
def test_one_adapter_is_itself(
    case: tuple[list[np.ndarray], list[np.ndarray], list[float]], within: str
) -> None:
    lefts, rights, scales = case
    view = lefts[0].shape[0], rights[0].shape[1]
    for b, a, s in zip(lefts, rights, scales, strict=True):
        joint = joint_of([[low_rank(b, a, s)]], [0.5], view)
        close(total(CORE_SPACE, joint, within=within), 0.5 * s * b @ a, 1e-9)


@settings(max_examples=60, deadline=None)
@given(case=products())
def test_copies_of_one_adapter_are_it(
    case: tuple[list[np.ndarray], list[np.ndarray], list[float]],
) -> None:
    """The mean of copies that agree is one of them, though the factors side by side are far from
    independent."""
    b, a, s = case[0][0], case[1][0], case[2][0]
    joint = joint_of([[low_rank(b, a, s)]] * 3, [1.0] * 3, (b.shape[0], a.shape[1]))
    close(total(CORE_SPACE, joint, within="ties"), s * b @ a, 1e-9)


@settings(max_examples=60, deadline=None)
@given(case=products(), first=st.booleans())
def test_an_adapter_of_zero_elects_nothing(
    case: tuple[list[np.ndarray], list[np.ndarray], list[float]], first: bool
) -> None:
    """Its core is zero to the bit, in whatever space: rounding errors have signs too."""
    b, a, s = case[0][0], case[1][0], case[2][0]
    trained, zero = [low_rank(b, a, s)], [low_rank(0 * case[0][-1], case[1][-1])]
    terms = [zero, trained] if first else [trained, zero]
    joint = joint_of(terms, [1.0, 1.0], (b.shape[0], a.shape[1]))
    close(total(CORE_SPACE, joint, within="ties"), s * b @ a, 1e-9)


def test_a_transposed_layer_is_the_transpose() -> None:
    rng = np.random.default_rng(6)
    pairs = [(rng.standard_normal((9, 3)), rng.standard_normal((3, 7))) for _ in range(3)]
    plain = joint_of([[low_rank(b, a)] for b, a in pairs], [1.0] * 3, (9, 7))
    turned = joint_of([[low_rank(a.T, b.T, turned=True)] for b, a in pairs], [1.0] * 3, (7, 9))
    for within in ("ties", "tsv"):
        asked = {"within": within, "density": 0.4} if within == "ties" else {}
        close(total(CORE_SPACE, turned, **asked), total(CORE_SPACE, plain, **asked).T, 1e-12)
