"""KnOTS against a dense implementation written from the paper and the authors' code
(arXiv:2410.19735)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from remerge.adapters.deltas import Window
from remerge.merging.methods.knots import KNOTS
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
from tests.merging.methods.ties_of_papers import ties


def knots(deltas: Sequence[np.ndarray], weights: Sequence[float], density: float) -> np.ndarray:
    left, values, right = svd(np.hstack(deltas))
    there = values > 1e-5
    aligned = values[there, None] * right[there]
    merged = ties(np.split(aligned, len(deltas), axis=1), weights, density)
    return left[:, there] @ merged


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 6, 3)])
def test_dense(tmp_path: Path, density: float, ranks: tuple[int, ...]) -> None:
    adapters = [random_factors(number, rank) for number, rank in enumerate(ranks)]
    scales, weights = [0.5, 2.0, 1.0], [0.7, -0.3, 1.5]
    found = merged_deltas(tmp_path, adapters, scales, "knots", weights, density=density)
    for name in LAYERS:
        deltas = [s * own[name][0] @ own[name][1] for own, s in zip(adapters, scales, strict=True)]
        close(found[name], knots(deltas, weights, density))


def test_untrimmed_it_merges_the_directions_themselves(tmp_path: Path) -> None:
    """The paper's ``U S V`` with V merged, where the code merges ``S V``."""
    adapters = [random_factors(number, 3) for number in range(2)]
    found = merged_deltas(tmp_path, adapters, [1.0, 1.0], "knots")
    for name in LAYERS:
        left, values, right = svd(np.hstack([own[name][0] @ own[name][1] for own in adapters]))
        there = values > 1e-5
        merged = ties(np.split(right[there], 2, axis=1), [1.0, 1.0], 1.0)
        close(found[name], left[:, there] * values[there] @ merged)


def test_sum_is_the_sum(tmp_path: Path) -> None:
    adapters = [random_factors(number, 3) for number in range(3)]
    weights = [0.7, -0.3, 1.5]
    found = merged_deltas(tmp_path, adapters, [1.0, 2.0, 0.5], "knots", weights, within="sum")
    for name in LAYERS:
        parts = zip(adapters, [1.0, 2.0, 0.5], weights, strict=True)
        close(found[name], sum(w * s * own[name][0] @ own[name][1] for own, s, w in parts), 1e-13)


@settings(max_examples=60, deadline=None)
@given(case=products())
def test_copies_of_one_adapter_are_it(
    case: tuple[list[np.ndarray], list[np.ndarray], list[float]],
) -> None:
    b, a, s = case[0][0], case[1][0], case[2][0]
    joint = joint_of([[low_rank(b, a, s)]] * 3, [1.0] * 3, (b.shape[0], a.shape[1]))
    close(total(KNOTS, joint), s * b @ a, 1e-9)


@settings(max_examples=60, deadline=None)
@given(case=products())
def test_any_factors(case: tuple[list[np.ndarray], list[np.ndarray], list[float]]) -> None:
    """What is elected never exceeds what the adapters have in the aligned space."""
    lefts, rights, scales = case
    steps = [[low_rank(b, a, s)] for b, a, s in zip(lefts, rights, scales, strict=True)]
    view = lefts[0].shape[0], rights[0].shape[1]
    found = total(KNOTS, joint_of(steps, [1.0] * len(steps), view), density=0.6)
    largest = max(np.linalg.norm(s * b @ a) for b, a, s in zip(lefts, rights, scales, strict=True))
    assert np.linalg.norm(found) <= len(steps) * largest + 1e-9


def test_a_transposed_layer_is_the_transpose() -> None:
    rng = np.random.default_rng(6)
    pairs = [(rng.standard_normal((9, 3)), rng.standard_normal((3, 7))) for _ in range(3)]
    plain = joint_of([[low_rank(b, a)] for b, a in pairs], [1.0] * 3, (9, 7))
    turned = joint_of([[low_rank(a.T, b.T, turned=True)] for b, a in pairs], [1.0] * 3, (7, 9))
    for density in (1.0, 0.4):
        expected = total(KNOTS, plain, density=density).T
        close(total(KNOTS, turned, density=density), expected, 1e-12)
    swapped = joint_of([[low_rank(a.T, b.T)] for b, a in pairs], [1.0] * 3, (7, 9))
    assert not np.allclose(total(KNOTS, swapped), total(KNOTS, turned))


def test_windows_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for turned in (False, True):
        steps = [
            [
                low_rank(
                    rng.standard_normal((11, 3)),
                    rng.standard_normal((3, 7)),
                    1.0,
                    2,
                    1,
                    turned=turned,
                )
            ]
            for _ in range(3)
        ]
        joint = joint_of(steps, [1.0, 2.0, -1.0], (20, 13))
        whole = total(KNOTS, joint, density=0.5)
        tiles = [
            Window(range(r, min(r + 3, 20)), range(c, min(c + 5, 13)))
            for r in range(0, 20, 3)
            for c in range(0, 13, 5)
        ]
        close(total(KNOTS, joint, tiles=tiles, density=0.5), whole, 1e-13)
        with monkeypatch.context() as patched:
            patched.setattr("remerge.merging.methods.blocks._ELEMENTS", 20)
            close(total(KNOTS, joint, density=0.5), whole, 1e-12)
