"""From a parameter of the model to the tensors of the checkpoint: steps moved through a region.

A region says which rows and columns of a tensor are which of the parameter. Factors follow by
picking their rows: those of the left factor belong to rows of the matrix, those of the right
factor's transpose to columns. Positions that the region leaves out get zeros, which change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from remerge.adapters.blocks import BlockStep, Step, place_block
from remerge.adapters.deltas import (
    Added,
    Delta,
    Factor,
    LowRank,
    Replaced,
    ReplacedRows,
)
from remerge.adapters.factors import made, turned
from remerge.adapters.regions import Index, Region
from remerge.errors import Unsupported

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Consecutive rows (or columns) of a tensor and where each comes from.

    ``take[i]`` is the position in the source of the tensor's position ``start + i``, -1 for none;
    None says that source and span are the same, in order.
    """

    start: int
    length: int
    take: Positions | None

    @property
    def gaps(self) -> bool:
        """Whether some position has no source."""
        return self.take is not None and bool((self.take < 0).any())

    @property
    def sources(self) -> int:
        """How many positions of the source are taken."""
        return self.length if self.take is None else int((self.take >= 0).sum())


@dataclass(frozen=True)
class Home:
    """The tensor that a region lies in: its matrix view and its dtype."""

    view: tuple[int, int]
    dtype: torch.dtype


def span(tensor: Index, parameter: Index, first: int, length: int) -> Span | None:
    """Where the parameter's positions ``[first, first + length)`` lie in the tensor, None if the
    region holds none of them."""
    if (
        isinstance(tensor, range)
        and isinstance(parameter, range)
        and tensor.step == parameter.step == 1
    ):
        start, stop = max(parameter.start, first), min(parameter.stop, first + length)
        if start >= stop:
            return None
        take = None
        if stop - start < length:
            take = np.arange(start - first, stop - first, dtype=np.int64)
        return Span(tensor.start + start - parameter.start, stop - start, take)
    source = np.asarray(parameter, dtype=np.int64) - first
    inside = (source >= 0) & (source < length)
    if not inside.any():
        return None
    at, source = np.asarray(tensor, dtype=np.int64)[inside], source[inside]
    start = int(at.min())
    take = np.full(int(at.max()) - start + 1, -1, dtype=np.int64)
    take[at - start] = source
    return Span(start, take.size, take)


@runtime_checkable
class Moves(Protocol):
    """A step that knows by itself how to lie in another tensor."""

    def moved(self, region: Region, home: Home) -> tuple[Delta, ...]:
        """The same step in terms of the region's tensor; () where they do not meet."""
        ...


def place(step: Step, region: Region, home: Home, view: tuple[int, int]) -> tuple[Delta, ...]:
    """The same step in terms of the region's tensor; () where they do not meet.

    ``view`` is the parameter's matrix view. Raises `Unsupported` where the tensor cannot take the
    step.
    """
    if isinstance(step, BlockStep):
        return (place_block(step, region, view),)
    if isinstance(step, Moves):
        return step.moved(region, home)
    match step:
        case LowRank():
            moved = move_low_rank(step, region)
            return () if moved is None else (moved,)
        case Added():
            return _added(step, region, home)
        case Replaced():
            return _replaced(step, region, home)
        case ReplacedRows():
            return _replaced_rows(step, region, home)
        case _:
            raise TypeError(f"no rule to place a {type(step).__name__}")


def spans_of(region: Region, row: int, rows: int, col: int, cols: int) -> tuple[Span, Span] | None:
    """Where the parameter's block lies in the tensor: down its rows and across its columns, in the
    tensor's own directions."""
    along = (region.cols, region.rows) if region.transposed else (region.rows, region.cols)
    tall = span(along[0], region.parameter_rows, row, rows)
    if tall is None:
        return None
    wide = span(along[1], region.parameter_cols, col, cols)
    if wide is None:
        return None
    return (wide, tall) if region.transposed else (tall, wide)


def move_low_rank(step: LowRank, region: Region) -> LowRank | None:
    """The low-rank step on the region's tensor; None where they do not meet."""
    found = spans_of(region, step.row, step.left.shape[0], step.col, step.right.shape[1])
    if found is None:
        return None
    rows, cols = found
    left, right = step.left, step.right
    if region.transposed:
        left, right = turned(step.right), turned(step.left)
    return LowRank(
        take_rows(left, rows),
        take_cols(right, cols),
        step.scale,
        rows.start,
        cols.start,
        step.turned != region.transposed,
    )


def _added(step: Added, region: Region, home: Home) -> tuple[Added, ...]:
    found = spans_of(region, step.row, step.values.shape[0], 0, step.values.shape[1])
    if found is None:
        return ()
    rows = _whole_rows(found, region, home)
    return (Added(take_rows(step.values, rows), step.scale, rows.start),)


def _replaced(step: Replaced, region: Region, home: Home) -> tuple[Delta, ...]:
    height, width = step.values.shape
    found = spans_of(region, step.row, height, step.col, width)
    if found is None:
        return ()
    rows, cols = found
    values = turned(step.values) if region.transposed else step.values
    if not rows.gaps and not cols.gaps:
        values = take_cols(take_rows(values, rows), cols)
        return (Replaced(values, rows.start, cols.start, whole=values.shape == home.view),)
    rows = _whole_rows(found, region, home)
    take = np.arange(rows.length) if rows.take is None else rows.take
    at = np.nonzero(take >= 0)[0]
    picked = take_rows(values, Span(0, at.size, take[at]))
    return (ReplacedRows(picked, tuple(int(index) + rows.start for index in at)),)


def _replaced_rows(step: ReplacedRows, region: Region, home: Home) -> tuple[ReplacedRows, ...]:
    found = spans_of(region, 0, max(step.indices) + 1, 0, step.values.shape[1])
    if found is None:
        return ()
    _whole_rows(found, region, home)
    known = {int(p): int(t) for t, p in zip(region.rows, region.parameter_rows, strict=True)}
    kept = [i for i, index in enumerate(step.indices) if index in known]
    if not kept:
        return ()
    values = take_rows(step.values, Span(0, len(kept), np.asarray(kept, dtype=np.int64)))
    return (ReplacedRows(values, tuple(known[step.indices[i]] for i in kept)),)


def _whole_rows(found: tuple[Span, Span], region: Region, home: Home) -> Span:
    """The rows of a step that changes whole rows of its tensor, in the tensor's column order."""
    rows, cols = found
    if region.transposed or cols.take is not None or (cols.start, cols.length) != (0, home.view[1]):
        raise Unsupported(
            f"{region.parameter} is replaced row by row, but {region.tensor} holds only parts of "
            "its rows, or other values between them."
        )
    return rows


def take_rows(factor: Factor, rows: Span) -> Factor:
    """The factor's rows in the order of the span, zeros at its gaps."""
    take = rows.take
    if take is None:
        return factor
    if rows.length and _is_run(take) and factor.read_rows is not None:
        return _run_of_rows(factor, int(take[0]), rows.length)

    def read() -> torch.Tensor:
        values = factor.read()
        positions = torch.as_tensor(take)
        picked = values[positions.clamp(min=0)]
        picked[positions < 0] = 0
        return picked

    return made((rows.length, factor.shape[1]), read)


def take_cols(factor: Factor, cols: Span) -> Factor:
    """The factor's columns in the order of the span, zeros at its gaps."""
    if cols.take is None:
        return factor
    return turned(take_rows(turned(factor), cols))


def _is_run(take: Sequence[int] | Positions) -> bool:
    values = np.asarray(take)
    return bool(values[0] >= 0 and (np.diff(values) == 1).all())


def _run_of_rows(factor: Factor, first: int, length: int) -> Factor:
    read_rows = factor.read_rows
    if read_rows is None:
        raise ValueError("only a factor that reads rows has a run of them")

    def read(wanted: range) -> torch.Tensor:
        return read_rows(range(first + wanted.start, first + wanted.stop))

    return Factor((length, factor.shape[1]), lambda: read(range(length)), read)
