"""The arithmetic: float64 on tiles that stay in cache, rounded once.

``out = round(float64(W) + float64(D))`` on the path float64 -> float32 -> bfloat16/float16 (what
torch's own cast does). The bits of ``W`` are kept where nothing changes, -0.0 and NaN payloads
included. A result that is not finite where the base was stops the merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from remerge.adapters.deltas import Change, Load, Prepared, Window
from remerge.errors import BadInput
from remerge.merging.ties import settle_ties

# 2 MB of float64: the level-2 cache of a core, measured to be the flat part of the curve.
TILE_ELEMENTS = 2**18


@dataclass(frozen=True)
class _Bits:
    """How a float's bits read as integers: its width, and the pattern of +inf, above which lie
    only NaN. The sign bit is the highest."""

    signed: torch.dtype
    unsigned: type[np.unsignedinteger[Any]]
    infinity: int
    sign: int


_BITS = {
    torch.bfloat16: _Bits(torch.int16, np.uint16, 0x7F80, 1 << 15),
    torch.float16: _Bits(torch.int16, np.uint16, 0x7C00, 1 << 15),
    torch.float32: _Bits(torch.int32, np.uint32, 0x7F800000, 1 << 31),
    torch.float64: _Bits(torch.int64, np.uint64, 0x7FF0000000000000, 1 << 63),
}


@dataclass(frozen=True)
class Scratch:
    """Buffers of one thread, reused for every tile."""

    wide: torch.Tensor

    @classmethod
    def new(cls, device: torch.device, elements: int = TILE_ELEMENTS) -> Scratch:
        """Room for a tile in float64."""
        return cls(torch.empty(elements, dtype=torch.float64, device=device))


def merge_elements(
    change: Change,
    source: torch.Tensor | None,
    target: torch.Tensor,
    first: int,
    load: Load,
    prepared: Sequence[Prepared],
    scratch: Scratch,
) -> None:
    """Compute the elements ``[first, first + len(target))`` of a changed tensor.

    ``source`` (1-D, the base's dtype) and ``target`` (1-D, the output's dtype) may share memory;
    ``source`` is None where the base is not read. Raises `BadInput` when a value overflows.
    """
    columns = change.view[1]
    position = 0
    while position < target.numel():
        window, count = _next_window(first + position, target.numel() - position, columns, scratch)
        stop = position + count
        piece = None if source is None else source[position:stop]
        _merge_window(change, piece, target[position:stop], window, load, prepared, scratch)
        position = stop


def _next_window(start: int, left: int, columns: int, scratch: Scratch) -> tuple[Window, int]:
    """The largest rectangle of the matrix that starts at this element and fits a tile."""
    row, col = divmod(start, columns)
    room = scratch.wide.numel()
    if col or left < columns or columns > room:
        width = min(columns - col, left, room)
        return Window(range(row, row + 1), range(col, col + width)), width
    rows = min(left // columns, room // columns)
    return Window(range(row, row + rows), range(columns)), rows * columns


def _merge_window(
    change: Change,
    source: torch.Tensor | None,
    target: torch.Tensor,
    window: Window,
    load: Load,
    prepared: Sequence[Prepared],
    scratch: Scratch,
) -> None:
    flat = scratch.wide[: target.numel()]
    tile = flat.view(len(window.rows), len(window.cols))
    fragile = None
    if source is None:
        flat.zero_()
    else:
        flat.copy_(source)
        fragile = _fragile(source)
    for step, numbers in zip(change.steps, prepared, strict=True):
        step.apply(tile, window, load, numbers)
    if target.dtype == torch.float32:
        settle_ties(change, source, tile, window, load)
    if target.device == flat.device:
        target.copy_(flat)
    else:
        # Rounded where it was computed, on the path that torch's cast takes on the CPU.
        target.copy_((flat.to(torch.float32) if target.itemsize < 4 else flat).to(target.dtype))
    if target.dtype in _BITS and not _is_finite(target):
        _explain(change, target, fragile, window)
    if fragile is not None:
        _restore(fragile, flat, target)


@dataclass(frozen=True)
class _Fragile:
    """Elements of the base whose bits an addition of zero would not keep: -0.0, NaN, Inf."""

    positions: torch.Tensor
    values: torch.Tensor


def _fragile(source: torch.Tensor) -> _Fragile | None:
    """The fragile elements; None nearly always, which three reductions of integers tell."""
    bits = _BITS[source.dtype]
    signed = source.view(bits.signed)
    if _is_finite(source) and int(signed.numpy().min()) != -bits.sign:
        return None
    positions = ((signed == -bits.sign) | ~torch.isfinite(source)).nonzero().flatten()
    return _Fragile(positions, source[positions])


def _is_finite(values: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN: as integers these are the largest of each sign."""
    bits = _BITS[values.dtype]
    signed = values.view(bits.signed).numpy()
    if int(signed.max()) >= bits.infinity:
        return False
    return int(signed.view(bits.unsigned).max()) < bits.infinity | bits.sign


def _restore(fragile: _Fragile, flat: torch.Tensor, target: torch.Tensor) -> None:
    """Put back the base's bits where the result has the same value (-0.0) or none (NaN, Inf)."""
    now = flat[fragile.positions.to(flat.device)].cpu()
    same = torch.where(torch.isfinite(fragile.values), now == 0, ~torch.isfinite(now))
    target[fragile.positions[same]] = fragile.values[same].to(target.dtype)


def _explain(
    change: Change, target: torch.Tensor, fragile: _Fragile | None, window: Window
) -> None:
    """Raise for the first result that is not finite where the base was."""
    bad = ~torch.isfinite(target)
    if fragile is not None:
        bad[fragile.positions[~torch.isfinite(fragile.values)]] = False
    if not bad.any():
        return
    where = int(bad.nonzero()[0])
    row, col = divmod(where, len(window.cols))
    raise BadInput(
        f"Tensor {change.tensor} becomes {float(target[where])} at row {window.rows[row]}, "
        f"column {window.cols[col]}, where the base is finite.",
        why=f"The merged value does not fit {str(target.dtype).removeprefix('torch.')}.",
        hint="Merge with --dtype bfloat16 or float32, or check the adapter's scaling.",
    )
