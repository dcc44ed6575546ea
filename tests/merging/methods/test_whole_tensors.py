"""Methods that weigh whole tensors or rows, against numpy on whole tensors."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remerge
from tests.merging.methods import delta_cases
from tests.merging.methods.delta_cases import BIAS, COLUMN, NORM, SHAPES, Case, K, Q

CHANGED = sorted(set(SHAPES) - {NORM})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return delta_cases.write(tmp_path_factory.mktemp("case") / "here")


def sce(deltas: np.ndarray, share: float) -> np.ndarray:
    """Select, calculate, erase, with mergekit's bounds."""
    if share < 1:
        variance = deltas.var(0)
        count = int(np.count_nonzero(variance.astype(np.float32)) * share)
        deltas = deltas * delta_cases.largest(variance, count)
    squares = np.square(deltas).reshape(len(deltas), -1).mean(1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else np.full(len(deltas), 1 / 3)
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    column = weights.reshape(-1, *(1,) * (deltas.ndim - 1)) * agree
    return (deltas * column).sum(0) / np.maximum(column.sum(0), 1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_sce(case: Case, share: float):
    merged = case.merged("sce", parameters={"select_topk": share})
    for name in CHANGED:
        expected = case.base[name] + sce(case.stack(name), share)
        delta_cases.assert_close(merged[name], expected, name)


def test_sce_of_small_adapters_weighs_them_alike(tmp_path: Path):
    """mergekit's bound: below 1e-6 mean squares tell nothing, though they differ."""
    small = delta_cases.write(tmp_path / "small")
    for adapter in (0, 2):
        config = small.place / f"adapter{adapter}" / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 1.5', '"lora_alpha": 1.5e-4'))
    deltas = small.stack(K) * 1e-4
    squares = np.square(deltas).reshape(3, -1).mean(1)
    assert 0 < squares.sum() < 1e-6 and squares.max() > 2 * squares[squares > 0].min()
    merged = small.merged("sce")
    delta_cases.assert_close(merged[K], small.base[K] + sce(deltas, 1.0), K)
    shares = squares / squares.sum()
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    column = shares[:, None, None] * agree
    unequal = (deltas * column).sum(0) / np.maximum(column.sum(0), 1e-6)
    assert np.abs(merged[K] - small.base[K] - unequal).max() > 1e-6


def rows_of(values: np.ndarray) -> np.ndarray:
    """Vectors of each row, (adapters, rows, columns); a vector is one."""
    return values.reshape(len(values), 1, -1) if values.ndim == 2 else values


def model_stock(deltas: np.ndarray, filter_wise: bool) -> np.ndarray:
    vectors = rows_of(deltas) if filter_wise else deltas.reshape(len(deltas), 1, -1)
    norms = np.linalg.norm(vectors, axis=2)
    cosines = [
        (vectors[i] * vectors[j]).sum(1) / np.maximum(norms[i] * norms[j], 1e-6)
        for i, j in combinations(range(len(deltas)), 2)
    ]
    cosine, count = np.mean(cosines, axis=0), len(deltas)
    t = count * cosine / (1 + (count - 1) * cosine)
    return (t[:, None] * vectors.mean(0)).reshape(deltas.shape[1:])


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_model_stock(case: Case, count: int, filter_wise: bool):
    merged = case.merged("model_stock", count, parameters={"filter_wise": filter_wise})
    for name in CHANGED:
        expected = case.base[name] + model_stock(case.stack(name, count), filter_wise)
        delta_cases.assert_close(merged[name], expected, name)
    if count == 2:
        # One of two adapters: their deltas are at right angles.
        delta_cases.assert_close(merged[COLUMN], case.base[COLUMN], COLUMN)


def between(t: float, one: np.ndarray, other: np.ndarray, line: float) -> np.ndarray:
    """The point between two vectors on the sphere; on their line where the cosine is above."""
    norms = np.linalg.norm(one), np.linalg.norm(other)
    cosine = (one * other).sum() / (max(norms[0], 1e-7) * max(norms[1], 1e-7))
    if abs(cosine) > line:
        return (1 - t) * one + t * other
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)


@pytest.mark.parametrize("weights", [(1, 1), (0.3, 0.9), (1, -1), (2, -0.5)])
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp(case: Case, weights: tuple[float, float], row_wise: bool):
    merged = case.merged("nuslerp", 2, weights=weights, parameters={"row_wise": row_wise})
    t = 0.5 if sum(weights) == 0 else weights[1] / sum(weights)
    for name in CHANGED:
        deltas = case.stack(name, 2)
        vectors = rows_of(deltas) if row_wise else deltas.reshape(2, 1, -1)
        turned = [between(t, *pair, line=1 - 1e-15) for pair in zip(*vectors, strict=True)]
        expected = case.base[name] + np.stack(turned).reshape(SHAPES[name])
        delta_cases.assert_close(merged[name], expected, name)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp(case: Case, t: float):
    merged = case.merged("slerp", 2, parameters={"t": t})
    turned = 0
    for name in CHANGED:
        one, other = case.base[name] + case.stack(name, 2)
        expected = between(t, one, other, line=0.9995)
        turned += not np.allclose(expected, (1 - t) * one + t * other)
        delta_cases.assert_close(merged[name], expected, name)
    assert t in (0, 1) or turned >= 3


def test_slerp_of_small_deltas_is_a_line(tmp_path: Path):
    """Their merged tensors point the same way, though the deltas do not."""
    small = delta_cases.write(tmp_path / "small")
    for adapter in small.adapters[:1]:
        config = Path(adapter) / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 1.5', '"lora_alpha": 0.015'))
    same = [small.adapters[0], small.adapters[0]]
    with remerge.open_merged(
        small.place / "base", same, method="slerp", parameters={"t": 0.5}
    ) as merged:
        found = merged[Q][...].numpy()
    delta_cases.assert_close(found, small.base[Q] + 0.01 * small.deltas[0][Q], Q)


def consensus(
    deltas: np.ndarray, weights: tuple[float, ...], mask_lambda: float, agreement: int
) -> np.ndarray:
    total = np.tensordot(weights, deltas, 1)
    masks = np.abs(deltas) >= mask_lambda * np.abs(total - deltas)
    return np.where(masks.sum(0) >= agreement, total, 0)


@pytest.mark.parametrize("agreement", [1, 2, 3])
@pytest.mark.parametrize("mask_lambda", [0.0, 0.4, 1.7])
def test_consensus(case: Case, agreement: int, mask_lambda: float):
    weights = (0.7, 1.3, -0.4)
    parameters = {"agreement": agreement, "mask_lambda": mask_lambda, "lambda": 0.8}
    merged = case.merged("consensus", weights=weights, parameters=parameters)
    for name in CHANGED:
        change = 0.8 * consensus(case.stack(name), weights, mask_lambda, agreement)
        delta_cases.assert_close(merged[name], case.base[name] + change, name)


def test_a_value_that_equals_its_bound_is_needed(case: Case):
    """With weights of 0.3 and 1 / 0.7, what one adapter alone changes equals its bound."""
    parameters = {"agreement": 1, "mask_lambda": 1 / 0.7}
    merged = case.merged("consensus", weights=0.3, parameters=parameters)
    delta_cases.assert_close(merged[BIAS], case.base[BIAS] + 0.3 * case.stack(BIAS).sum(0), BIAS)


@pytest.mark.parametrize(
    ("method", "count", "options", "words"),
    [
        ("sce", 3, {"weights": (1, 0.5, 1)}, "--method sce has no --weights"),
        ("model_stock", 3, {"weights": 0.5}, "--method model_stock has no --weights"),
        ("slerp", 2, {"weights": (0.2, 0.8)}, "--method slerp has no --weights"),
        ("sce", 3, {"parameters": {"select_topk": 1.5}}, "--select-topk"),
        ("slerp", 2, {"parameters": {"t": -0.1}}, "--t"),
        ("slerp", 3, {}, "exactly 2"),
        ("nuslerp", 3, {}, "exactly 2"),
        ("model_stock", 1, {}, "at least 2"),
        ("consensus", 3, {"parameters": {"agreement": 4}}, "--agreement 4 is more than"),
        ("consensus", 3, {"parameters": {"mask_lambda": -1}}, "--mask-lambda"),
    ],
)
def test_what_makes_no_sense(case: Case, method: str, count: int, options: Any, words: str):
    with pytest.raises(remerge.UsageError, match=words):
        case.merged(method, count, **options)
