"""Tensors that all layers of an adapter share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from remerge.adapters.edits import Context
from remerge.adapters.keys import Parts
from remerge.adapters.tuners.weights import Weight
from remerge.errors import Unsupported
from remerge.sources.dtypes import torch_dtype

_MOST_DRAWN = 2**28


def split_shared(layers: Sequence[Parts]) -> tuple[dict[str, str], list[Parts]]:
    """The shared tensors by part, and the layers."""
    shared: dict[str, str] = {}
    for parts in layers:
        if not parts.module:
            shared.update(parts.tensors)
    return shared, [parts for parts in layers if parts.module]


def largest(layers: Sequence[Weight]) -> tuple[int, int]:
    """The most outputs and the most inputs of any layer: the size of what they share."""
    outputs = max((layer.outputs for layer in layers), default=0)
    return outputs, max((layer.inputs for layer in layers), default=0)


def projection(
    context: Context, shared: Mapping[str, str], part: str, wanted: tuple[int, ...]
) -> Callable[[], torch.Tensor] | None:
    """Reads a stored projection; None, with a misfit, where it is missing or of another
    shape, which is that of the largest layers."""
    name = shared.get(part)
    if name is None:
        context.misfits.add(
            f"base_model.*_{part}", "is missing, which adapted layers use", "unpaired"
        )
        return None
    found = context.stored(name)
    if found != wanted:
        context.misfits.add(name, f"has shape {found}, but the layers need {wanted}", "shape")
        return None
    return lambda: context.recent(name)


def check_drawn(what: str, numbers: int) -> None:
    """Raise `Unsupported` for a seeded draw of more numbers than a merge holds in memory."""
    if numbers > _MOST_DRAWN:
        raise Unsupported(
            f"{what} asks for {numbers} random numbers to be drawn again.",
            why=f"They must be in memory together, and over {_MOST_DRAWN} are no adapter's.",
            hint="Check the ranks in adapter_config.json, or save the adapter with what was drawn.",
        )


def held(context: Context, weight: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounds drawn float32 numbers as PEFT does: to the dtype of the layer's weight, and back
    (tuners_utils.py, _move_adapter_to_device_of_base_layer and cast_adapter_dtype)."""
    regions = context.names.regions(weight)
    found = context.base.tensors.get(regions[0].tensor) if regions else None
    dtype = torch.float32 if found is None else torch_dtype(found.dtype)
    return lambda drawn: drawn.to(dtype).to(torch.float32)
