"""The parts of a model that a bisection takes one by one: layers, what stands beside them, and the
modules of a layer, by the names of stored tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# Names end in one of these where a module holds them; a stack of experts has a name of its own.
_HELD = ("weight", "bias")
_LAYER = re.compile(r"(.*?\.\d+)\.")
_EXPERT = re.compile(r"(.+?\.experts)\.(?:\d+\.)?")


@dataclass(frozen=True)
class Part:
    """A part by its name, with the stored tensors that are it."""

    name: str
    tensors: tuple[str, ...]


def module_of(tensor: str) -> str:
    """The module that holds a tensor, or the tensor where it is a parameter of its own."""
    module, _, last = tensor.rpartition(".")
    return module if module and last in _HELD else tensor


def layer_of(tensor: str) -> str:
    """The layer that a tensor is in, by the first number of its name; else its module."""
    found = _LAYER.match(tensor)
    return module_of(tensor) if found is None else found[1]


def parts_by_layer(tensors: Iterable[str]) -> list[Part]:
    """Layers, and modules that are in none: embedding, head, last norm."""
    return _grouped((layer_of(tensor), tensor) for tensor in tensors)


def parts_by_module(tensors: Collection[str], most: int) -> list[Part]:
    """Modules; where these are more than ``most``, the experts of a layer together."""
    found = _grouped((module_of(tensor), tensor) for tensor in tensors)
    if len(found) <= most:
        return found
    return _grouped((_experts_of(tensor), tensor) for tensor in tensors)


def in_runs(parts: Sequence[Part], most: int) -> list[Part]:
    """At most so many parts: neighbours together where there are more."""
    size = -(-len(parts) // most)
    if size <= 1:
        return list(parts)
    found: list[Part] = []
    for first in range(0, len(parts), size):
        run = parts[first : first + size]
        name = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
        found.append(Part(name, tuple(tensor for part in run for tensor in part.tensors)))
    return found


def _experts_of(tensor: str) -> str:
    found = _EXPERT.match(tensor)
    return module_of(tensor) if found is None else found[1]


def _grouped(named: Iterable[tuple[str, str]]) -> list[Part]:
    found: dict[str, list[str]] = {}
    for name, tensor in named:
        found.setdefault(name, []).append(tensor)
    return [
        Part(name, tuple(found[name])) for name in sorted(found, key=lambda name: _natural(name))
    ]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [
        (piece.isdigit(), int(piece) if piece.isdigit() else 0, piece)
        for piece in re.split(r"(\d+)", name)
    ]
