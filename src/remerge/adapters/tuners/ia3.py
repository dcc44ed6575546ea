"""IA3 (arXiv:2205.05638; PEFT tuners/ia3): a layer's outputs, or its inputs, scaled one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.patterns import is_whole
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.weights import CONVOLUTIONS, Weight, weight_of

_KINDS = ("Linear", "Conv1D", "Conv2d", "Conv3d")


class Ia3Config(PeftConfig):
    """``feedforward_modules``: layers whose inputs are scaled; PEFT fills it in for known models
    before it saves."""

    feedforward_modules: list[str] | str | None = None

    def feeds_forward(self, module: str) -> bool | None:
        """Whether the module's inputs are scaled; None where the configuration is silent."""
        told = self.feedforward_modules
        if isinstance(told, str):
            return is_whole("feedforward_modules", told, module)
        return None if told is None else module.endswith(tuple(told))


Context = Reading[Ia3Config]


@dataclass(frozen=True)
class Scaled:
    """Scales the rows of ``(out, in * kernel)`` values or, ``by_input``, their columns.

    ``values`` is ``(outputs or inputs, 1)``. In a grouped convolution ``per_group`` outputs see a
    part of the inputs.
    """

    values: Factor
    by_input: bool
    kernel: int = 1
    per_group: int = 0
    group_inputs: int = 0
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        values = load(self.values).reshape(-1)
        down = torch.as_tensor(np.asarray(rows), device=block.device).unsqueeze(1)
        if not self.by_input:
            block *= values[down]
            return
        across = torch.as_tensor(np.asarray(cols), device=block.device) // self.kernel
        if self.per_group:
            across = across + down // self.per_group * self.group_inputs
        block *= values[across]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Context, parts: Parts) -> list[Edit]:
    weight = weight_of(context, parts, _KINDS)
    by_input = None if weight is None else _scales_inputs(context, parts, weight)
    if weight is None or by_input is None:
        return []
    name = parts.any_tensor
    values = matrix(context.adapter, name, (math.prod(context.stored(name)), 1))
    if by_input:
        step = Scaled(values, True, weight.kernel)
        if weight.groups > 1:
            per_group = weight.outputs // weight.groups
            step = Scaled(values, True, weight.kernel, per_group, weight.inputs // weight.kernel)
        return [Edit(weight.parameter, (weight.step(step),))]
    step = Scaled(values, False)
    edits = [Edit(weight.parameter, (weight.step(step),))]
    if context.shape(weight.bias) is not None:
        edits.append(Edit(weight.bias, (step,)))
    return edits


def _scales_inputs(context: Context, parts: Parts, weight: Weight) -> bool | None:
    """Whether the stored vector scales inputs; None, with a misfit, where it fits neither."""
    name = parts.any_tensor
    found, inputs = context.stored(name), weight.inputs // weight.kernel * weight.groups
    wanted = {True: (1, inputs), False: (weight.outputs, 1)}
    if weight.kind in CONVOLUTIONS:
        places = (1,) * (len(weight.shape) - 2)
        wanted = {True: (1, inputs, *places), False: (1, weight.outputs, *places)}
    told = context.config.feeds_forward(parts.module)
    fitting = [side for side in wanted if found == wanted[side] and told in (side, None)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        problem = "adapter_config.json has no feedforward_modules to say what it scales"
        context.misfits.add(name, problem, "unknown")
    else:
        sides = [wanted[side] for side in wanted if told in (side, None)]
        shapes = " or ".join(str(shape) for shape in sides)
        context.misfits.add(
            name,
            f"has shape {found}, but {weight.parameter} of shape {weight.shape} needs {shapes}",
            "shape",
        )
    return None


IA3 = Tuner("ia3", Ia3Config, part_keys("ia3", "l"), _edits)
