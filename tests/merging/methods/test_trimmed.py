"""Methods that keep some of each delta's values by magnitude, against numpy on whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remerge
from remerge.merging import combined
from tests.merging.methods import delta_cases
from tests.merging.methods.delta_cases import BIAS, COLUMN, NORM, SHAPES, Case, Full, Q, V

WEIGHTS = [0.7, 1.3, -0.4]
CHANGED = sorted(set(SHAPES) - {NORM})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return delta_cases.write(tmp_path_factory.mktemp("case") / "here")


def split(flat: np.ndarray) -> Full:
    """Values of all changed tensors in the order of their names, by tensor."""
    sizes = [int(np.prod(SHAPES[name])) for name in CHANGED]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(CHANGED, parts, strict=True)}


def trimmed(case: Case, scope: str, keep: Any) -> list[Full]:
    """Every adapter's deltas, of which ``keep(adapter, values)`` tells what stays, in one tensor or
    in all."""
    found: list[Full] = []
    for adapter in range(3):
        whole = {name: case.stack(name)[adapter] for name in CHANGED}
        if scope == "model":
            flat = np.concatenate([whole[name].reshape(-1) for name in CHANGED])
            found.append(split(np.where(keep(adapter, np.abs(flat)), flat, 0)))
        else:
            found.append({n: np.where(keep(adapter, np.abs(v)), v, 0) for n, v in whole.items()})
    return found


def weighted(kept: np.ndarray) -> np.ndarray:
    return np.tensordot(WEIGHTS, kept, 1)


def check(case: Case, kept: Sequence[Full], merged: Full, join: Any) -> None:
    for name in CHANGED:
        change = join(np.stack([full[name] for full in kept]))
        delta_cases.assert_close(merged[name], case.base[name] + change, name)
    np.testing.assert_array_equal(merged[NORM], case.base[NORM])


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.3, 1.0, (0.2, 1.0, 0.5)])
def test_ties(case: Case, density: Any, scope: str):
    each = np.broadcast_to(density, 3)

    def keep(adapter: int, sizes: np.ndarray) -> np.ndarray:
        count = max(1, int(each[adapter] * sizes.size)) if each[adapter] > 0 else 0
        return delta_cases.largest(sizes, count)

    parameters = {"density": density, "scope": scope}
    merged = case.merged("ties", weights=WEIGHTS, parameters=parameters)
    kept = trimmed(case, scope, keep)
    check(case, kept, merged, lambda d: delta_cases.elect(d, WEIGHTS, normalize=True))


def test_ties_by_frequency_not_normalised_and_scaled(case: Case):
    parameters = {"majority_sign_method": "frequency", "normalize": False, "lambda": 0.6}
    merged = case.merged("ties", weights=WEIGHTS, parameters=parameters)
    kept = trimmed(case, "tensor", lambda _, sizes: sizes >= 0)
    check(case, kept, merged, lambda d: 0.6 * delta_cases.elect(d, WEIGHTS, total=False))


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, (0.9, 0.1, 1.0)])
def test_magnitude_prune(case: Case, density: Any, scope: str):
    each = np.broadcast_to(density, 3)
    parameters = {"density": density, "scope": scope}
    merged = case.merged("magnitude_prune", weights=WEIGHTS, parameters=parameters)

    def keep(adapter: int, sizes: np.ndarray) -> np.ndarray:
        return delta_cases.largest(sizes, int(each[adapter] * sizes.size))

    check(case, trimmed(case, scope, keep), merged, weighted)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(
    ("density", "gamma"),
    [
        (1.0, 0.2),
        (0.4, 0.0),
        (0.4, 0.1),
        (0.9, 0.3),
        (0.0, 0.5),
        ((0.3, 0.6, 0.9), (0.1, 0.2, 1.0)),
    ],
)
@pytest.mark.parametrize("elects", [False, True])
def test_breadcrumbs(case: Case, density: Any, gamma: Any, elects: bool, scope: str):
    """The paper's sort: the smallest go first, then the largest, as many as leave the density."""
    densities, gammas = np.broadcast_to(density, 3), np.broadcast_to(gamma, 3)

    def keep(adapter: int, sizes: np.ndarray) -> np.ndarray:
        if densities[adapter] >= 1:
            return np.ones(sizes.shape, dtype=bool)
        stay, large = int(densities[adapter] * sizes.size), int(gammas[adapter] * sizes.size)
        small = max(0, sizes.size - stay - large)
        ascending = np.argsort(-sizes.astype(np.float32).reshape(-1), kind="stable")[::-1]
        taken = np.zeros(sizes.size, dtype=bool)
        taken[ascending[small : small + stay]] = True
        return taken.reshape(sizes.shape)

    method = "breadcrumbs_ties" if elects else "breadcrumbs"
    parameters = {"density": density, "gamma": gamma, "scope": scope, "lambda": 1.1}
    merged = case.merged(method, weights=WEIGHTS, parameters=parameters)
    join = (lambda d: delta_cases.elect(d, WEIGHTS)) if elects else weighted
    check(case, trimmed(case, scope, keep), merged, lambda d: 1.1 * join(d))


def test_breadcrumbs_normalised(case: Case):
    parameters = {"density": 1.0, "normalize": True}
    merged = case.merged("breadcrumbs", weights=WEIGHTS, parameters=parameters)
    kept = trimmed(case, "tensor", lambda _, sizes: sizes >= 0)
    check(case, kept, merged, lambda d: weighted(d) / sum(WEIGHTS))


def test_one_threshold_for_the_model_is_not_one_for_each_tensor(case: Case):
    options = {"weights": WEIGHTS, "method": "ties"}
    one, all_ = (
        case.merged(**options, parameters={"density": 0.2, "scope": scope})
        for scope in ("tensor", "model")
    )
    assert not np.allclose(one[Q], all_[Q])
    assert not np.allclose(one[V], all_[V])


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "magnitude_prune"])
def test_a_threshold_over_the_model_whichever_tensor_is_read_first(case: Case, method: str):
    whole = case.merged(method, parameters={"density": 0.3, "scope": "model"})
    for first in CHANGED:
        with remerge.open_merged(
            case.place / "base",
            case.adapters,
            method=method,
            parameters={"density": 0.3, "scope": "model"},
        ) as merged:
            np.testing.assert_array_equal(merged[first][...].numpy(), whole[first])


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("elements", [2**18, 97])
def test_of_equal_values_the_first_stay(
    tmp_path: Path, scope: str, elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(combined, "_ELEMENTS", elements)
    equal = delta_cases.write(tmp_path / "equal", equal=True)
    for density in (0.15, 0.4):
        parameters = {"density": density, "scope": scope}
        merged = equal.merged("magnitude_prune", weights=WEIGHTS, parameters=parameters)

        def keep(_: int, sizes: np.ndarray, share: float = density) -> np.ndarray:
            return delta_cases.largest(sizes, int(share * sizes.size))

        check(equal, trimmed(equal, scope, keep), merged, weighted)


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {"density": 1.5}, "--density: 1.5 is no share from 0 to 1"),
        ("ties", {"density": (0.5, -0.1, 1)}, "--density: -0.1 is no share"),
        ("breadcrumbs", {"gamma": 2}, "--gamma: 2.0 is no share"),
        ("breadcrumbs_ties", {"density": -1}, "--density: -1.0 is no share"),
        ("magnitude_prune", {"density": 7}, "--density: 7.0 is no share"),
        ("ties", {"scope": "layer"}, "--scope"),
    ],
)
def test_shares_out_of_range(case: Case, method: str, parameters: Any, words: str):
    with pytest.raises(remerge.UsageError, match=words):
        case.merged(method, parameters=parameters)


def test_weights_that_cancel_out_are_no_divisor(case: Case):
    with pytest.raises(remerge.UsageError, match="sum of the weights, which is zero"):
        case.merged("breadcrumbs", weights=[1, -2, 1], parameters={"normalize": True})


def test_nothing_is_measured_where_all_stays(case: Case, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: combined.Deltas) -> Any:
        raise AssertionError("a pass over the deltas")

    monkeypatch.setattr(combined.Deltas, "blocks", refuse)
    case.merged("ties", parameters={"density": 1.0})
    case.merged("magnitude_prune", parameters={"density": 1.0, "scope": "model"})
    case.merged("breadcrumbs", parameters={"density": 1.0})
    case.merged("dare_linear", parameters={"density": 0.5})
    case.merged("dare_ties", parameters={"density": 1.0, "rescale": "l1"})
    case.merged("della", parameters={"density": 1.0})
    with pytest.raises(AssertionError, match="a pass"):
        case.merged("ties", parameters={"density": 0.5})


def test_tensors_of_one_adapter_alone(case: Case):
    """What others leave alone is no rival: a bias and a column of one adapter each."""
    merged = case.merged("ties", parameters={"density": 1.0})
    for name in (BIAS, COLUMN):
        delta_cases.assert_close(merged[name], case.base[name] + case.stack(name).sum(0), name)
