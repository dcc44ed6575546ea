"""Fully connected layers as most families know them: a weight of outputs by inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from remerge.adapters.deltas import Factor, LowRank
from remerge.adapters.edits import Context
from remerge.adapters.factors import turned
from remerge.adapters.facts import AdapterFacts
from remerge.adapters.keys import LayerKey, Parts

_INTEGERS = ("U8", "I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class Dense:
    """The weight of a ``Linear (out, in)``, or of a ``Conv1D``, which stores ``(in, out)``."""

    module: str
    outputs: int
    inputs: int
    transposed: bool

    @property
    def weight(self) -> str:
        """The weight's name."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """The bias's name."""
        return f"{self.module}.bias"

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape as it is stored."""
        if self.transposed:
            return self.inputs, self.outputs
        return self.outputs, self.inputs

    def low_rank(self, left: Factor, right: Factor, scale: float) -> LowRank:
        """``scale * left (out, r) @ right (r, in)`` on the weight as it is stored."""
        if self.transposed:
            return LowRank(turned(right), turned(left), scale)
        return LowRank(left, right, scale)


def dense_layer(context: Context, parts: Parts, conv1d: bool = True) -> Dense | None:
    """The fully connected layer that these tensors adapt; None, with a misfit, where there is none.

    ``conv1d`` says whether PEFT has this family for transformers' ``Conv1D`` too.
    """
    layer = context.names.layer(parts.module)
    shape = context.shape(f"{parts.module}.weight")
    tensor = parts.any_tensor
    if layer is None or shape is None:
        context.misfits.add(tensor, f"the model has no layer {parts.module}", "missing")
        return None
    kinds = ("Linear", "Conv1D") if conv1d else ("Linear",)
    if layer.kind not in kinds or len(shape) != 2:
        found = f"{layer.kind} of shape {shape}"
        context.misfits.add(tensor, f"cannot belong to {parts.module}, a {found}", "layer")
        return None
    if parts.depth:
        context.misfits.add(tensor, f"is wrapped twice, but {parts.module} is one layer", "layer")
        return None
    transposed = layer.kind == "Conv1D"
    outputs, inputs = shape[::-1] if transposed else shape
    return Dense(parts.module, outputs, inputs, transposed)


def has_shape(
    context: Context, tensor: str, wanted: tuple[int, ...], where: Dense, kind: str = "shape"
) -> bool:
    """Whether a stored tensor of floats has the shape that the layer asks for; a misfit if not."""
    found = context.stored(tensor)
    size = f"{where.module} with {where.outputs} outputs and {where.inputs} inputs"
    if found != wanted:
        context.misfits.add(tensor, f"has shape {found}, but {size} needs {wanted}", kind)
        return False
    return has_kind(context, tensor, integers=False)


def have_shapes(
    context: Context, where: Dense, wanted: Mapping[str, tuple[int, ...]], kind: str = "shape"
) -> bool:
    """As `has_shape` for several tensors; every one that does not fit is a misfit."""
    fit = [has_shape(context, name, shape, where, kind) for name, shape in wanted.items()]
    return all(fit)


def has_kind(context: Context, tensor: str, integers: bool) -> bool:
    """Whether a stored tensor holds integers (or floats, without ``integers``); a misfit if not."""
    dtype = context.adapter.tensors[tensor].dtype
    if dtype in _INTEGERS if integers else dtype.startswith(("F", "BF")):
        return True
    wanted = "integers" if integers else "floats"
    context.misfits.add(tensor, f"has dtype {dtype}, but its values are {wanted}", "unknown")
    return False


def stored_shape(adapter: AdapterFacts, parts: Parts, part: str) -> tuple[int, ...] | None:
    """The shape of a layer's part as it is stored, None where the layer has no such part."""
    name = parts.tensors.get(part)
    return None if name is None else tuple(adapter.tensors[name].shape)


def part_keys(prefix: str, *parts: str, shared: tuple[str, ...] = ()) -> LayerKey:
    """Keys ``<module>.<prefix>_<part>``, with or without the adapter's name behind.

    ``base_model.<prefix>_<part>`` is a tensor that all layers share; those of ``shared`` parts are
    such tensors only.
    """
    names = "|".join((*parts, *shared))
    pattern = re.compile(rf"(?P<module>.+)\.{prefix}_(?P<part>{names})(?:\.[^.]+)?")

    def layer_key(path: str) -> tuple[str, str] | None:
        found = pattern.fullmatch(path)
        if found is None:
            return None
        module, part = found["module"], found["part"]
        if module == "base_model":
            return "", part
        return None if part in shared else (module, part)

    return layer_key
