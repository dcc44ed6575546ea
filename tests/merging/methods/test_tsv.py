"""TSV-Merge against a dense implementation written from the paper's algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from remerge.merging.methods.tsv import TSV
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

ZERO = 1e-9


def orthogonal(columns: np.ndarray) -> np.ndarray:
    """The nearest orthonormal columns; directions that are not there are left out."""
    left, values, right = svd(columns)
    there = values > ZERO * values.max(initial=0.0)
    return left[:, there] @ right[there]


def tsv_merge(deltas: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Gargiulo et al., arXiv:2412.00081, algorithm 1, on dense matrices."""
    share = max(1, min(deltas[0].shape) // len(deltas))
    parts = [svd(delta) for delta in deltas]
    kept = [min(share, int((s > ZERO * s.max(initial=0.0)).sum())) for _, s, _ in parts]
    left = np.hstack([u[:, :k] for (u, _, _), k in zip(parts, kept, strict=True)])
    right = np.hstack([v[:k].T for (_, _, v), k in zip(parts, kept, strict=True)])
    values = [w * s[:k] for (_, s, _), k, w in zip(parts, kept, weights, strict=True)]
    return orthogonal(left) * np.concatenate(values) @ orthogonal(right).T


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 5, 3), (2, 2, 12)])
def test_dense(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    # v_proj has 23 columns: of rank 12, a third of 23 stays.
    adapters = [random_factors(number, rank) for number, rank in enumerate(ranks)]
    scales, weights = [0.5, 2.0, 1.0], [0.7, -0.3, 1.5]
    found = merged_deltas(tmp_path, adapters, scales, "tsv", weights)
    for name in LAYERS:
        deltas = [s * own[name][0] @ own[name][1] for own, s in zip(adapters, scales, strict=True)]
        close(found[name], tsv_merge(deltas, weights))


def test_one_adapter_is_itself(tmp_path: Path) -> None:
    adapter = random_factors(1, 4)
    found = merged_deltas(tmp_path, [adapter], [0.5], "tsv", [2.0])
    for name in LAYERS:
        close(found[name], adapter[name][0] @ adapter[name][1])


@settings(max_examples=60, deadline=None)
@given(case=products())
def test_any_factors(case: tuple[list[np.ndarray], list[np.ndarray], list[float]]) -> None:
    lefts, rights, scales = case
    steps = [[low_rank(b, a, s)] for b, a, s in zip(lefts, rights, scales, strict=True)]
    view = lefts[0].shape[0], rights[0].shape[1]
    found = total(TSV, joint_of(steps, [1.0] * len(steps), view))
    deltas = [s * b @ a for b, a, s in zip(lefts, rights, scales, strict=True)]
    # Nearly parallel vectors of small random matrices lose digits on either side.
    close(found, tsv_merge(deltas, [1.0] * len(deltas)), 1e-6)
