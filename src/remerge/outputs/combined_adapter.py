"""A combination of adapters written as one: factors where it has them, values where it has not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from remerge.errors import BadInput
from remerge.merging.adapter_factors import Factors, Found
from remerge.merging.adapter_plan import AdapterPlan
from remerge.merging.extraction_plan import Parameter, module_names, state_of
from remerge.merging.factored import rounding
from remerge.outputs.peft_adapter import adapter_config, factors, keys_of, task_of
from remerge.sources.dtypes import torch_dtype

# Told: a parameter's name, done.
Told = Callable[[str], None]


class Sink(Protocol):
    """Takes the tensors of adapter_model.safetensors in their order, then their names."""

    def add(self, slot: str, tensor: torch.Tensor) -> None: ...

    def add_blocks(
        self, slot: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]
    ) -> None: ...

    def finish(self, keys: Mapping[str, str]) -> int: ...


@dataclass(frozen=True)
class Figures:
    """One parameter's factors: their rank, whether they are exact but for their own rounding, and
    the norm of what they miss, rounding included, relative to ``norm``."""

    name: str
    shape: tuple[int, ...]
    rank: int
    exact: bool
    relative_error: float
    norm: float


@dataclass(frozen=True)
class Derived:
    """What was given to a sink, and the configuration that belongs to it."""

    figures: tuple[Figures, ...]
    whole: tuple[str, ...]
    unchanged: tuple[str, ...]
    config: bytes

    @property
    def relative_error(self) -> float:
        """``||D - D'|| / ||D||`` over all parameters with factors."""
        total = math.hypot(*(each.norm for each in self.figures))
        missed = math.hypot(*(each.norm * each.relative_error for each in self.figures))
        return missed / total if total else 0.0


def derive(
    found: Factors, sink: Sink, base: str, revision: str | None, told: Told = lambda name: None
) -> Derived:
    """Give the new adapter to a sink; ``base`` and ``revision`` are what it names as its base.

    Raises `BadInput` where the factors overflow their dtype or nothing is left of any change.
    """
    plan = found.plan
    form = plan.plan.recipe.adapter
    assert form is not None
    dtype = torch_dtype(form.dtype)
    figures: list[Figures] = []
    factored: list[Parameter] = []
    unchanged: list[str] = []
    for each in found.found():
        parameter = each.product.parameter
        told(parameter.name)
        if not each.pairs:
            unchanged.append(parameter.name)
            continue
        for part, tensor in zip("AB", _rounded(each, dtype), strict=True):
            sink.add(f"{parameter.name}|{part}", tensor)
        figures.append(_figures(each, dtype))
        factored.append(parameter)
    if not factored and not plan.wholes:
        raise BadInput(
            "The adapters' changes cancel out: there is no adapter to write.",
            hint="Check the weights.",
        )
    for whole in plan.wholes:
        told(whole.parameter.name)
        kept, blocks = found.values(whole)
        sink.add_blocks(whole.parameter.name, kept, whole.parameter.merged_shape, blocks)
    wholes = [whole.parameter for whole in plan.wholes]
    sink.finish(keys_of(factored, wholes))
    config = adapter_config(
        {each.name: each.rank for each in figures},
        factored,
        plan.saved,
        module_names(plan.opened),
        tuple(name for name, _ in state_of(plan.opened)),
        _stated(plan, base, revision),
        has_experts=any(parameter.form == "stack" for parameter in _parameters(plan)),
    )
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return Derived(tuple(figures), tuple(p.name for p in wholes), tuple(unchanged), text.encode())


def most_bytes(plan: AdapterPlan) -> int:
    """The most that adapter_model.safetensors may take, its header apart."""
    form = plan.plan.recipe.adapter
    width = torch_dtype(form.dtype if form is not None else "F32").itemsize
    total = sum(
        width * p.parameter.matrices * p.rank * (p.parameter.view[0] // p.parameter.matrices)
        + width * p.parameter.matrices * p.rank * p.parameter.view[1]
        for p in plan.products
    )
    # Whole values are of the base's dtype, no wider than eight bytes.
    return total + sum(4 * math.prod(w.parameter.merged_shape) for w in plan.wholes)


def _parameters(plan: AdapterPlan) -> list[Parameter]:
    return [product.parameter for product in plan.products]


def _rounded(found: Found, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    pair = factors(found.product.parameter, found.pairs, dtype)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in pair):
        raise BadInput(
            f"The factors of {found.product.parameter.name} overflow "
            f"{str(dtype).removeprefix('torch.')}.",
            hint="Use --dtype float32.",
        )
    return pair


def _figures(found: Found, dtype: torch.dtype) -> Figures:
    parameter = found.product.parameter
    lost = math.hypot(*(rounding(p.left, p.right, dtype) for p in found.pairs))
    return Figures(
        parameter.name,
        parameter.shape,
        found.pairs[0].rank,
        found.product.exact and found.missed == 0.0,
        math.hypot(found.missed, lost) / found.norm,
        found.norm,
    )


def _stated(plan: AdapterPlan, base: str, revision: str | None) -> dict[str, Any]:
    loose = [w.parameter.name for w in plan.wholes if w.parameter.module not in plan.saved]
    task, mapping = (plan.task.config.get(key) for key in ("task_type", "auto_mapping"))
    model_type = str(plan.opened.checkpoint.config.get("model_type"))
    stated = {"task_type": task, "auto_mapping": mapping}
    if task is None and mapping is None:
        stated = task_of(model_type, type(plan.opened.model))
    return {
        "base_model_name_or_path": base,
        "revision": revision,
        "bias": "all" if any(name.endswith(".bias") for name in loose) else "none",
        **stated,
    }
