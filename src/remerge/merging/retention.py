"""How much of a delta the output kept: a 16-bit weight swallows what is smaller than its last bit.

For a tensor ``W``, its delta ``D`` (both exact) and the output ``W'``: the part kept is
``<W'-W, D> / <D, D>``, the noise ``|W'-W-D| / |D|``, and some elements did not change at all. All
are measured while merging, from values that are in memory anyway, on blocks of elements that the
plan alone decides: neither chunks nor threads change a figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal

import torch

from remerge.merging.plan import Piece
from remerge.sources.dtypes import itemsize

Mode = Literal["sample", "full"]

# Every chunk is made of whole spans of this many bytes of the output file.
SPAN = 2**20
# Of a tensor's spans so many are sampled, and of each its first elements.
_SPANS = 8
_ELEMENTS = 2**15
# Elements of a quantised tensor measured at once: about the rows that share a scale.
_SPAN_OF_CODES = 2**19


@dataclass(frozen=True)
class Block:
    """Elements ``[first, first + count)`` of a tensor on which its delta is measured."""

    first: int
    count: int


def blocks(piece: Piece, mode: Mode, first: int, last: int) -> list[Block]:
    """The blocks of a tensor that begin in its elements ``[first, last)``, each within one span of
    the output file."""
    size, origin = itemsize(piece.plan.dtype), piece.start // SPAN
    count = -(-piece.stop // SPAN) - origin
    spans = _spread(count) if mode == "sample" else range(count)
    low = (piece.start + first * size) // SPAN - origin
    high = (piece.start + max(last * size - 1, 0)) // SPAN - origin
    found: list[Block] = []
    for number in spans:
        if low <= number <= high:
            start = max(piece.start, (origin + number) * SPAN)
            stop = min(piece.stop, (origin + number + 1) * SPAN)
            begin, length = (start - piece.start) // size, (stop - start) // size
            if first <= begin < last:
                found.append(Block(begin, length if mode == "full" else min(length, _ELEMENTS)))
    return found


def encoded_blocks(shape: Sequence[int], mode: Mode) -> list[Block]:
    """The blocks of a tensor that is written in a quantised format, of its values decoded."""
    elements = math.prod(shape)
    if mode == "full":
        return [
            Block(at, min(_SPAN_OF_CODES, elements - at))
            for at in range(0, elements, _SPAN_OF_CODES)
        ]
    starts = [number * _ELEMENTS for number in _spread(-(-elements // _ELEMENTS))]
    return [Block(at, min(_ELEMENTS, elements - at)) for at in starts]


def _spread(count: int) -> Sequence[int]:
    """Which of so many places are sampled: all of a few, else some spread evenly."""
    return (
        [number * count // _SPANS for number in range(_SPANS)] if count > _SPANS else range(count)
    )


@dataclass(frozen=True)
class Sums:
    """What was summed over one block: ``<D, D>``, ``<W'-W, D>``, ``|W'-W-D|^2``, and counts."""

    elements: int
    unchanged: int
    delta: float
    kept: float
    noise: float

    @classmethod
    def of(cls, base: torch.Tensor, exact: torch.Tensor, output: torch.Tensor) -> Sums:
        """From 1-D values: the base's, the exact result's and the output's."""
        base, output = base.to(torch.float64), output.to(torch.float64)
        delta, kept = exact - base, output - base
        return cls(
            base.numel(),
            int((kept == 0).sum()),
            _sum(delta.square()),
            _sum(kept * delta),
            _sum((kept - delta).square()),
        )


def _sum(values: torch.Tensor) -> float:
    """A sum by halves: only additions of pairs, which are the same on every machine."""
    while values.numel() > 1:
        half = (values.numel() + 1) // 2
        folded = values[:half].clone()
        folded[: values.numel() - half] += values[half:]
        values = folded
    return float(values[0]) if values.numel() else 0.0


@dataclass
class Meter:
    """The sums of a merge in progress, by tensor and block; for any number of threads."""

    mode: Mode
    found: dict[str, dict[int, Sums]] = field(default_factory=dict[str, dict[int, Sums]])
    _lock: Any = field(default_factory=Lock)

    def add(self, tensor: str, block: Block, sums: Sums) -> None:
        with self._lock:
            self.found.setdefault(tensor, {})[block.first] = sums

    def document(self, tensors: Iterable[str]) -> dict[str, list[list[float]]]:
        """What was measured of these tensors as JSON data, for a run that is taken up again."""
        with self._lock:
            return {
                name: [
                    [first, s.elements, s.unchanged, s.delta, s.kept, s.noise]
                    for first, s in sorted(self.found[name].items())
                ]
                for name in tensors
                if name in self.found
            }

    def restore(self, document: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Take over what `document` gave."""
        for name, rows in document.items():
            for first, elements, unchanged, *sums in rows:
                self.add(name, Block(int(first), 0), Sums(int(elements), int(unchanged), *sums))


@dataclass(frozen=True)
class Retention:
    """The figures of one tensor, or of all: ``kept`` and ``noise`` relative to the delta, the share
    ``unchanged`` of the measured elements. ``kept`` and ``noise`` are None for a delta of zero.
    ``delta`` is the Frobenius norm of the whole delta, estimated where a sample was measured."""

    elements: int
    delta: float
    kept: float | None
    noise: float | None
    unchanged: float

    def document(self) -> dict[str, Any]:
        return {
            "elements": self.elements,
            "delta": _rounded(self.delta),
            "kept": _rounded(self.kept),
            "noise": _rounded(self.noise),
            "unchanged": _rounded(self.unchanged),
        }


def figures(meter: Meter, sizes: Mapping[str, int]) -> tuple[dict[str, Retention], Retention]:
    """The figures of every tensor measured, and those of all together, in which each tensor counts
    by its size (``sizes``: elements by tensor) and not by how much of it was sampled."""
    tensors: dict[str, Retention] = {}
    whole: list[tuple[float, ...]] = []
    measured = 0
    for name, blocks_found in sorted(meter.found.items()):
        sums = [blocks_found[first] for first in sorted(blocks_found)]
        elements = sum(s.elements for s in sums)
        unchanged = sum(s.unchanged for s in sums)
        delta, kept, noise = (
            math.fsum(values)
            for values in zip(*((s.delta, s.kept, s.noise) for s in sums), strict=True)
        )
        weight = sizes[name] / max(elements, 1)
        found = _figures(elements, unchanged / max(elements, 1), delta, kept, noise)
        tensors[name] = replace(found, delta=math.sqrt(weight) * found.delta)
        measured += elements
        whole.append((sizes[name], weight * unchanged, *(weight * x for x in (delta, kept, noise))))
    size, same, delta, kept, noise = (math.fsum(column[at] for column in whole) for at in range(5))
    return tensors, _figures(measured, same / max(size, 1.0), delta, kept, noise)


def _figures(elements: int, unchanged: float, delta: float, kept: float, noise: float) -> Retention:
    if delta == 0:
        return Retention(elements, 0.0, None, None, unchanged)
    norm = math.sqrt(delta)
    return Retention(elements, norm, kept / delta, math.sqrt(noise / delta), unchanged)


def _rounded(value: float | None) -> float | None:
    """Six digits: what matrix products of different machines agree on by far."""
    return None if value is None else float(f"{value:.6g}")
