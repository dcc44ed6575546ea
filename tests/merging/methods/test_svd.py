"""`svd` against the truncated decomposition of dense sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import remerge
from remerge.adapters.deltas import LowRank, Window
from remerge.merging.methods.factors import Cored
from remerge.merging.methods.svd import SVD
from tests.merging.methods.factor_cases import (
    LAYERS,
    Nothing,
    close,
    joint_of,
    load,
    low_rank,
    merged_deltas,
    products,
    random_factors,
    svd,
    total,
    write_adapter,
    write_base,
)


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = svd(matrix)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize("rank", [None, 1, 3, 50])
def test_nearest_of_a_rank(tmp_path: Path, rank: int | None) -> None:
    adapters = [random_factors(1, 4), random_factors(2, 3), random_factors(3, 2)]
    scales, weights = [0.5, 2.0, 1.0], [0.7, -0.3, 1.5]
    found = merged_deltas(tmp_path, adapters, scales, "svd", weights, svd_rank=rank)
    for name in LAYERS:
        dense = sum(
            w * s * own[name][0] @ own[name][1]
            for own, s, w in zip(adapters, scales, weights, strict=True)
        )
        close(found[name], nearest(dense, rank or 4))


def test_the_default_is_the_largest_rank_of_all_layers(tmp_path: Path) -> None:
    q, k, v = LAYERS
    adapters = [random_factors(1, {q: 2, k: 6, v: 2}), random_factors(2, {q: 3, k: 2, v: 5})]
    found = merged_deltas(tmp_path, adapters, [1.0, 1.0], "svd")
    for name in LAYERS:
        dense = sum(own[name][0] @ own[name][1] for own in adapters)
        close(found[name], nearest(dense, 6))


@settings(max_examples=60, deadline=None)
@given(case=products(), rank=st.integers(1, 6))
def test_any_factors(case: tuple[list[np.ndarray], list[np.ndarray], list[float]], rank: int):
    lefts, rights, scales = case
    view = lefts[0].shape[0], rights[0].shape[1]
    steps = [[low_rank(b, a, s)] for b, a, s in zip(lefts, rights, scales, strict=True)]
    dense = sum(s * b @ a for b, a, s in zip(lefts, rights, scales, strict=True))
    found = total(SVD, joint_of(steps, [1.0] * len(steps), view), svd_rank=rank)
    values = svd(dense)[1]
    # Where singular values are equal the nearest matrix is not the only one; its error is.
    close(np.linalg.norm(found - dense), np.linalg.norm(values[rank:]), 1e-9)
    assert np.linalg.matrix_rank(found, tol=1e-9 * max(1.0, values[0])) <= rank


def test_windows_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    steps = [
        [
            low_rank(rng.standard_normal((11, 3)), rng.standard_normal((3, 7)), 1.0, 2, 1),
            low_rank(rng.standard_normal((5, 2)), rng.standard_normal((2, 4)), 1.0, 14, 9),
        ]
        for _ in range(3)
    ]
    joint = joint_of(steps, [1.0, 2.0, -1.0], (20, 13))
    whole = total(SVD, joint, svd_rank=2)
    tiles = [
        Window(range(r, min(r + 3, 20)), range(c, min(c + 5, 13)))
        for r in range(0, 20, 3)
        for c in range(0, 13, 5)
    ]
    close(total(SVD, joint, tiles=tiles, svd_rank=2), whole, 1e-13)
    monkeypatch.setattr("remerge.merging.methods.blocks._ELEMENTS", 20)
    close(total(SVD, joint, svd_rank=2), whole, 1e-12)


def test_it_is_a_product_of_its_rank() -> None:
    rng = np.random.default_rng(4)
    steps = [[low_rank(rng.standard_normal((9, 3)), rng.standard_normal((3, 8)))] for _ in "ab"]
    joint = joint_of(steps, [1.0, 1.0], (9, 8))
    (step,) = SVD.combine(joint, SVD.read({"svd_rank": 2}))
    assert isinstance(step, Cored)
    prepared = step.prepare(Nothing((9, 8)), load)
    found = step.low_rank(load, prepared)
    assert isinstance(found, LowRank)
    assert found.left.shape[1] == found.left.read().shape[1] == step.rank == 2
    product = (found.left.read() @ found.right.read()).numpy()
    close(product, total(SVD, joint, svd_rank=2), 1e-13)


def test_without_truncation_it_is_the_sum_everywhere(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    for number in range(2):
        write_adapter(tmp_path / str(number), random_factors(number, 2), 1.0)
    paths: list[str | Path] = [tmp_path / "0", tmp_path / "1"]
    assert remerge.plan(tmp_path / "base", paths, method="svd").reproducible == "same-stack"
    whole = remerge.plan(tmp_path / "base", paths, method="svd", parameters={"svd_rank": 4})
    assert whole.reproducible == "everywhere"
