"""The arithmetic: float64 on tiles that stay in cache, rounded once.

``out = round(float64(W) + float64(D))`` on the path float64 -> float32 -> bfloat16/float16 (what
torch's own cast does). The bits of ``W`` are kept where nothing changes, -0.0 and NaN payloads
included. A result that is not finite where the base was stops the merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Change, Load, Prepared, Window
from remerge.errors import BadInput
from remerge.merging.ties import settle_ties

# 2 MB of float64: the level-2 cache of a core, measured to be the flat part of the curve.
TILE_ELEMENTS = 2**18

# Bit patterns of +inf by width: above them, without the sign, lie only infinities and NaN.
_INFINITY = {
    torch.bfloat16: (torch.int16, 0x7F80, 0x7FFF),
    torch.float16: (torch.int16, 0x7C00, 0x7FFF),
    torch.float32: (torch.int32, 0x7F800000, 0x7FFFFFFF),
    torch.float64: (torch.int64, 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
}


@dataclass(frozen=True)
class Scratch:
    """Buffers of one thread, reused for every tile."""

    wide: torch.Tensor

    @classmethod
    def new(cls, device: torch.device, columns: int = 1) -> Scratch:
        """Room for a tile of whole rows of ``columns`` elements, at least one row."""
        return cls(torch.empty(max(TILE_ELEMENTS, columns), dtype=torch.float64, device=device))


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
    kept = None
    if source is None:
        flat.zero_()
    else:
        flat.copy_(source)
        kept = _fragile(source)
    for step, numbers in zip(change.steps, prepared, strict=True):
        step.apply(tile, window, load, numbers)
    if target.dtype == torch.float32:
        settle_ties(change, source, tile, window, load)
    on_device = target.device == flat.device
    rounded = target if on_device else torch.empty_like(target, device=flat.device)
    rounded.copy_(flat)
    _check_finite(change, rounded, kept, window)
    if kept is not None:
        _restore(kept, flat, rounded)
    if not on_device:
        target.copy_(rounded)


@dataclass(frozen=True)
class _Fragile:
    """Elements of the base whose bits an addition of zero would not keep."""

    positions: torch.Tensor
    values: torch.Tensor


def _fragile(source: torch.Tensor) -> _Fragile | None:
    """Where the base is -0.0 or not finite; None nearly always, and cheap to know."""
    kind, infinity, magnitude = _INFINITY[source.dtype]
    bits = source.view(kind)
    smallest = torch.iinfo(kind).min
    if bits.amin() != smallest and (bits & magnitude).amax() < infinity:
        return None
    positions = ((bits == smallest) | ((bits & magnitude) >= infinity)).nonzero().flatten()
    return _Fragile(positions, source[positions])


def _restore(kept: _Fragile, flat: torch.Tensor, rounded: torch.Tensor) -> None:
    """Put back the base's bits where the result has the same value (-0.0) or none (NaN, Inf)."""
    now = flat[kept.positions]
    same = torch.where(torch.isfinite(kept.values), now == 0, ~torch.isfinite(now))
    rounded[kept.positions[same]] = kept.values[same].to(rounded.dtype)


def _check_finite(
    change: Change, rounded: torch.Tensor, kept: _Fragile | None, window: Window
) -> None:
    if rounded.dtype not in _INFINITY:
        return
    kind, infinity, magnitude = _INFINITY[rounded.dtype]
    bits = rounded.view(kind) & magnitude
    if rounded.numel() == 0 or bits.amax() < infinity:
        return
    bad = bits >= infinity
    if kept is not None:
        bad[kept.positions[~torch.isfinite(kept.values)]] = False
    if not bad.any():
        return
    where = int(bad.nonzero()[0])
    row, col = divmod(where, len(window.cols))
    raise BadInput(
        f"Tensor {change.tensor} becomes {float(rounded[where])} at row {window.rows[row]}, "
        f"column {window.cols[col]}, where the base is finite.",
        why=f"The merged value does not fit {str(rounded.dtype).removeprefix('torch.')}.",
        hint="Merge with --dtype bfloat16 or float32, or check the adapter's scaling.",
    )
