"""DARE and DELLA: masks by the element's address, shares and means as the papers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import remerge
from remerge.merging import combined
from remerge.merging.draws import uniform
from tests.merging.methods import delta_cases
from tests.merging.methods.delta_cases import NORM, SHAPES, Case, K, Q, V

WEIGHTS = [0.7, 1.3, -0.4]
CHANGED = sorted(set(SHAPES) - {NORM})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return delta_cases.write(tmp_path_factory.mktemp("case") / "here")


def draws(seed: int, adapter: int, name: str) -> np.ndarray:
    """One number a value, of the whole tensor at once (`test_draws` says which)."""
    count = int(np.prod(SHAPES[name]))
    return uniform(seed, adapter, name, 0, count).numpy().reshape(SHAPES[name])


def chances(delta: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """DELLA's chances, row by row; a vector is a row, and a row of one value has the density."""
    rows = delta.reshape(1, -1) if delta.ndim == 1 else delta
    if rows.shape[1] == 1:
        return np.full(delta.shape, density)
    found = np.empty(rows.shape)
    for row, out in zip(np.abs(rows).astype(np.float32), found, strict=True):
        order = np.argsort(-row, kind="stable")
        out[order] = np.linspace(density + epsilon, density - epsilon, len(row))
    return found.reshape(delta.shape)


def l1(kept: np.ndarray, delta: np.ndarray) -> float:
    norm, left = np.abs(delta).sum(), np.abs(kept).sum()
    return 1.0 if min(norm, left) < 1e-7 else norm / left


@pytest.mark.parametrize("rescale", ["expected", "l1", "none"])
@pytest.mark.parametrize("density", [0.0, 0.35, 1.0, (0.2, 1.0, 0.6)])
@pytest.mark.parametrize("elects", [False, True])
def test_dare(case: Case, density: Any, rescale: str, elects: bool):
    parameters = {"density": density, "rescale": rescale, "seed": 5, "lambda": 0.9}
    method = "dare_ties" if elects else "dare_linear"
    merged = case.merged(method, weights=WEIGHTS, parameters=parameters)
    for name in CHANGED:
        kept = case.stack(name)
        for adapter, share in enumerate(np.broadcast_to(density, 3)):
            delta = kept[adapter]
            masked = np.where(draws(5, adapter, name) < share, delta, 0)
            scale = {"none": 1, "expected": 1 / (share or 1), "l1": l1(masked, delta)}[rescale]
            kept[adapter] = masked * scale
        change = delta_cases.elect(kept, WEIGHTS) if elects else np.tensordot(WEIGHTS, kept, 1)
        delta_cases.assert_close(merged[name], case.base[name] + 0.9 * change, name)


@pytest.mark.parametrize("rescale", ["expected", "l1", "none"])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0, (0.3, 1.0, 0.7)])
@pytest.mark.parametrize("elects", [False, True])
def test_della(case: Case, density: Any, rescale: str, elects: bool):
    epsilon = (0.2, 0.1, 0.0)
    parameters = {"density": density, "epsilon": epsilon, "rescale": rescale, "seed": 6}
    method = "della" if elects else "della_linear"
    merged = case.merged(method, weights=WEIGHTS, parameters=parameters)
    for name in CHANGED:
        kept = case.stack(name)
        for adapter, share in enumerate(np.broadcast_to(density, 3)):
            delta = kept[adapter]
            if 0 < share < 1:
                p = chances(delta, share, epsilon[adapter])
                masked = np.where(draws(6, adapter, name) < p, delta, 0)
                scale = {"none": 1, "expected": 1 / p, "l1": l1(masked, delta)}[rescale]
                kept[adapter] = masked * scale
            else:
                kept[adapter] = delta * share
        change = np.tensordot(WEIGHTS, kept, 1)
        if elects:
            change = delta_cases.elect(kept, WEIGHTS, normalize=True)
        delta_cases.assert_close(merged[name], case.base[name] + change, name)


def test_a_vector_is_ranked_whole(case: Case, monkeypatch: pytest.MonkeyPatch):
    options: dict[str, Any] = {"parameters": {"density": 0.5, "epsilon": 0.4}}
    whole = case.merged("della", **options)
    monkeypatch.setattr(combined, "_ELEMENTS", 10)
    for name, values in case.merged("della", **options).items():
        delta_cases.assert_close(values, whole[name], name)


def kept_of(case: Case, method: str, seed: int, **parameters: Any) -> np.ndarray:
    """What one adapter's delta of the long rows became, over the delta."""
    asked = {"seed": seed, **parameters}
    merged = case.merged(method, count=1, parameters=asked)
    return (merged[V] - case.base[V]) / case.stack(V, 1)[0]


def test_dares_share_and_mean(case: Case):
    found = np.stack([kept_of(case, "dare_linear", seed, density=0.3) for seed in range(12)])
    kept = np.isclose(found, 1 / 0.3, rtol=1e-6)
    assert np.all(kept | np.isclose(found, 0, atol=1e-9))
    # Of 46,836 values; the bounds are five standard deviations.
    assert abs(kept.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / kept.size)
    assert abs(found.mean() - 1) < 5 * np.sqrt(0.7 / 0.3 / kept.size)


def test_dellas_share_by_rank(case: Case):
    """Of a row the smallest stay with density - epsilon, the largest with density + epsilon."""
    options = {"density": 0.5, "epsilon": 0.4, "rescale": "none"}
    found = np.stack([kept_of(case, "della_linear", seed, **options) for seed in range(12)])
    order = np.argsort(np.abs(case.stack(V, 1)[0]), axis=1)
    kept = np.take_along_axis(found > 0.5, np.broadcast_to(order, found.shape), 2)
    tenth = kept.shape[2] // 10
    shares = [kept[:, :, i * tenth : (i + 1) * tenth].mean() for i in range(10)]
    expected = 0.5 + 0.4 * (np.arange(10) * 0.2 - 0.9)
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / (36 * tenth)))


def test_dellas_expected_mean(case: Case):
    options = {"density": 0.5, "epsilon": 0.3, "rescale": "expected"}
    found = np.stack([kept_of(case, "della_linear", seed, **options) for seed in range(12)])
    assert abs(found.mean() - 1) < 5 * np.sqrt(1.5 / found.size)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_a_seed_gives_the_same_masks_and_another_others(case: Case, method: str):
    one, same, other = (
        case.merged(method, parameters={"density": 0.5, "seed": seed}) for seed in (1, 1, 2)
    )
    for name in CHANGED:
        np.testing.assert_array_equal(one[name], same[name])
    assert not np.allclose(one[Q], other[Q])


def test_one_more_adapter_changes_no_mask(case: Case):
    """Masks are by the adapter's place: the first one's stay as they are."""
    two = case.merged("dare_linear", count=2, parameters={"density": 0.5})
    three = case.merged("dare_linear", count=3, parameters={"density": 0.5})
    np.testing.assert_array_equal(two[Q], three[Q])
    assert not np.allclose(two[K], three[K])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"density": 0.1}, "--epsilon: 0.15 does not fit density 0.1"),
        ({"density": (0.5, 0.9, 1), "epsilon": 0.1}, "--epsilon: 0.1 does not fit density 0.9"),
        ({"density": 0.5, "epsilon": -0.1}, "--epsilon: -0.1 does not fit"),
        ({"density": 1.1}, "--density: 1.1 is no share"),
        ({"density": 0.5, "rescale": "l2"}, "--rescale"),
        ({"density": 0.5, "seed": -1}, "--seed"),
    ],
)
def test_values_out_of_range(case: Case, parameters: Any, words: str):
    with pytest.raises(remerge.UsageError, match=words):
        case.merged("della", parameters=parameters)


def test_an_epsilon_is_free_where_nothing_is_drawn(case: Case):
    case.merged("della", parameters={"density": (0, 1, 1), "epsilon": 0.9})
