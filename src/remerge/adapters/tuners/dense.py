"""Fully connected layers, and the checks that an adapter's tensors belong to them."""

from __future__ import annotations

import re

from remerge.adapters.edits import Context
from remerge.adapters.facts import AdapterFacts
from remerge.adapters.keys import LayerKey, Parts
from remerge.adapters.tuners.weights import Weight, weight_of

_INTEGERS = ("U8", "I8", "I16", "I32", "I64")


def dense_layer(context: Context, parts: Parts, conv1d: bool = True) -> Weight | None:
    """The weight of the fully connected layer that these tensors adapt; None, with a misfit, where
    there is none. ``conv1d``: PEFT has this family for transformers' ``Conv1D`` too."""
    return weight_of(context, parts, ("Linear", "Conv1D") if conv1d else ("Linear",))


def holds_integers(context: Context, tensor: str) -> bool:
    """Whether a stored tensor holds integers; a misfit if not."""
    dtype = context.adapter.tensors[tensor].dtype
    if dtype in _INTEGERS:
        return True
    context.misfits.add(tensor, f"has dtype {dtype}, but its values are integers", "dtype")
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
