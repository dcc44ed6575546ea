"""Fully connected layers as most families know them: a weight of outputs by inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remerge.adapters.deltas import Factor, LowRank
from remerge.adapters.edits import Context
from remerge.adapters.factors import turned
from remerge.adapters.keys import LayerKey, Parts


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
    """Whether a stored tensor has the shape that the layer asks for; a misfit where it has not."""
    found = context.stored(tensor)
    if found == wanted:
        return True
    size = f"{where.outputs} outputs and {where.inputs} inputs"
    context.misfits.add(
        tensor, f"has shape {found}, but {where.module} with {size} needs {wanted}", kind
    )
    return False


def part_keys(prefix: str, *parts: str, shared: tuple[str, ...] = ()) -> LayerKey:
    """Keys ``<module>.<prefix>_<part>``, with or without the adapter's name behind.

    Those of ``shared`` parts are ``base_model.<prefix>_<part>`` and belong to no layer.
    """
    names = "|".join((*parts, *shared))
    pattern = re.compile(rf"(?P<module>.+)\.{prefix}_(?P<part>{names})(?:\.[^.]+)?")

    def layer_key(path: str) -> tuple[str, str] | None:
        found = pattern.fullmatch(path)
        if found is None:
            return None
        module, part = found["module"], found["part"]
        if part in shared:
            return ("", part) if module == "base_model" else None
        return module, part

    return layer_key
