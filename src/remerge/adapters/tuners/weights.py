"""The weight of an adapted layer of any kind, and the checks that its tensors belong to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from remerge.adapters.blocks import BlockStep
from remerge.adapters.deltas import BaseMatrix, Factor, Load, LowRank, Prepared
from remerge.adapters.edits import Context
from remerge.adapters.factors import turned
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.vocabulary import counts_tokens

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True)
class Weight:
    """An adapted layer's weight.

    ``view`` is its matrix view as stored: ``(out, in * kernel)`` of a Linear or a convolution,
    ``(in, out)`` of a Conv1D, ``(tokens, dim)`` of an Embedding.
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    view: tuple[int, int]
    groups: int

    @property
    def parameter(self) -> str:
        """The weight's name."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """The bias's name."""
        return f"{self.module}.bias"

    @property
    def transposed(self) -> bool:
        """Whether it is stored as (in, out): Conv1D of transformers."""
        return self.kind == "Conv1D"

    @property
    def outputs(self) -> int:
        return self.view[1] if self.transposed else self.view[0]

    @property
    def inputs(self) -> int:
        """Inputs to one output, each place of a kernel counted."""
        return self.view[0] if self.transposed else self.view[1]

    @property
    def kernel(self) -> int:
        """Places of the kernel, 1 where there is none."""
        return math.prod(self.shape[2:]) if self.kind in CONVOLUTIONS else 1

    def low_rank(self, left: Factor, right: Factor, scale: float) -> LowRank:
        """``scale * left (out, r) @ right (r, in)`` on the weight as it is stored."""
        if self.transposed:
            return LowRank(turned(right), turned(left), scale, turned=True)
        return LowRank(left, right, scale)

    def step(self, step: BlockStep) -> BlockStep:
        """A step on ``(out, in)`` values, without a band, as one on the weight as stored."""
        return Turned(step) if self.transposed else step


def weight_of(context: Context, parts: Parts, kinds: Collection[str]) -> Weight | None:
    """The weight that these tensors adapt; None, with a misfit, where the model has no such layer,
    or one that PEFT does not adapt in this way (``kinds``)."""
    tensor, module = parts.any_tensor, parts.module
    layer, shape = context.names.layer(module), context.shape(f"{module}.weight")
    if layer is None or shape is None:
        context.misfits.add(tensor, f"the model has no layer {module}", "missing")
    elif layer.kind not in kinds or len(shape) < 2:
        found = f"{layer.kind} of shape {shape}"
        context.misfits.add(tensor, f"cannot belong to {module}, a {found}", "layer")
    elif parts.depth:
        context.misfits.add(tensor, f"is wrapped twice, but {module} is one layer", "layer")
    else:
        view = context.view(f"{module}.weight", shape)
        return Weight(module, layer.kind, shape, view, layer.groups)
    return None


def fits(
    context: Context, tensor: str, wanted: tuple[int, ...], weight: Weight, kind: str = "shape"
) -> bool:
    """Whether a stored tensor has the shape that the layer asks for; a misfit where it has not."""
    found = context.stored(tensor)
    if found == wanted:
        return True
    near = len(found) == len(wanted) and sum(a != b for a, b in zip(found, wanted, strict=True)) < 2
    if near and counts_tokens(weight.parameter):
        kind = "vocabulary"
    problem = f"has shape {found}, but {weight.parameter} of shape {weight.shape} needs {wanted}"
    context.misfits.add(tensor, problem, kind)
    return False


def all_fit(
    context: Context, weight: Weight, wanted: Mapping[str, tuple[int, ...]], kind: str = "shape"
) -> bool:
    """As `fits` for several tensors; every one that does not fit is a misfit."""
    fit = [fits(context, name, shape, weight, kind) for name, shape in wanted.items()]
    return all(fit)


def has_rank(context: Context, tensor: str, axis: int, rank: int) -> bool:
    """Whether a stored tensor has this rank along the axis; a misfit where it has not."""
    found = context.stored(tensor)
    if -len(found) <= axis < len(found) and found[axis] == rank:
        return True
    problem = f"has shape {found}, but the configuration gives it rank {rank}"
    context.misfits.add(tensor, problem, "rank")
    return False


def has_no_groups(context: Context, parts: Parts, weight: Weight) -> bool:
    """Whether the layer is no grouped convolution, which this family has no rule for."""
    if weight.groups == 1:
        return True
    problem = f"{weight.module} is a convolution with {weight.groups} groups, which PEFT refuses"
    context.misfits.add(parts.any_tensor, problem, "layer")
    return False


def linear_shapes(adapter: AdapterFacts, outputs: str | None, inputs: str | None) -> FactorShapes:
    """The shape of a Linear whose outputs are the first axis of one stored matrix and whose inputs
    the last of another; nothing where they are missing or no matrices."""

    def matrix(name: str | None) -> tuple[int, ...] | None:
        shape = None if name is None else tuple(adapter.tensors[name].shape)
        return shape if shape is not None and len(shape) == 2 else None

    return FactorShapes(matrix(inputs), matrix(outputs))


@dataclass(frozen=True)
class Turned:
    """A step on single values (no band) applied to the transposed parameter."""

    step: BlockStep
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return self.step.factors

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        self.step.change(block.T, cols, rows, load, prepared)
