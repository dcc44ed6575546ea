"""The same merge asked of both, and how far the answers may be apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import remerge
from tests.mergekit.models import Models, Tensors
from tests.mergekit.tool import Mergekit

# Both compute in float64, but mergekit subtracts the base from the merged models to have the
# deltas, which costs it an ulp of the base (1e-17), and sums run in another order.
CLOSE = 1e-12

# What mergekit calls a parameter of ours, where it is not the same.
_NAMES = {"row_wise": "nuslerp_flatten"}
_VALUES: Mapping[tuple[str, Any], Any] = {
    ("rescale", "l1"): True,
    ("rescale", "none"): False,
    ("row_wise", True): False,
    ("row_wise", False): True,
}
_METHODS = {"sum": "task_arithmetic"}
# They weigh the adapters themselves, or take two whole models and one number.
UNWEIGHTED = frozenset({"sce", "model_stock", "slerp"})


def ours(
    models: Models, method: str, weights: Sequence[float] | None = None, **parameters: Any
) -> Tensors:
    """``lambda_`` is lambda, here and below."""
    merged = remerge.open_merged(
        models.base,
        list(models.adapters),
        method=method,
        weights=weights,
        parameters={name.rstrip("_"): value for name, value in parameters.items()},
    )
    return {name: merged[name][:] for name in models.tensors}


def theirs(
    mergekit: Mergekit,
    models: Models,
    method: str,
    weights: Sequence[float] | None = None,
    *,
    draw: int = 0,
    **parameters: Any,
) -> Tensors:
    """``draw`` seeds mergekit's random masks; a seed of ours means nothing to it."""
    asked = {
        _NAMES.get(name, name.rstrip("_")): _VALUES.get((name, value), value)
        if isinstance(value, str | bool)
        else value
        for name, value in parameters.items()
        if name != "seed"
    }
    if method not in UNWEIGHTED:
        asked["weight"] = [1.0] * len(models.adapters) if weights is None else list(weights)
    inputs = [models.wide, *models.merged]
    base: int | None = 0
    if method == "linear":
        inputs, base = [*models.merged], None
    elif method == "slerp":
        # The base is one of the two.
        inputs = [*models.merged]
    return mergekit.merge(inputs, _METHODS.get(method, method), base=base, seed=draw, **asked)


def assert_close(
    found: Tensors, expected: Tensors, within: float = CLOSE, *, relative: float = 0.0
) -> None:
    """No tensor more than ``within``, and a share of its largest value, from mergekit's."""
    for name, tensor in expected.items():
        worst = (found[name].double() - tensor).abs().max().item()
        assert worst <= within + relative * tensor.abs().max().item(), f"{name}: {worst}"


def assert_same(
    mergekit: Mergekit,
    models: Models,
    method: str,
    *,
    changed: bool = True,
    relative: float = 0.0,
    **asked: Any,
) -> None:
    """Ours and theirs of one merge; it must change the first layer unless ``changed`` is false."""
    found = ours(models, method, **asked)
    assert_close(found, theirs(mergekit, models, method, **asked), relative=relative)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not (changed and torch.equal(found[name], models.tensors[name]))
