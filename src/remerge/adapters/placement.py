"""A layout said as `Region`s: which block of which tensor is which block of the parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from remerge.adapters.indices import (
    all_divisible,
    divided,
    largest,
    multiplied,
    outer_sum,
    shifted,
)
from remerge.adapters.layouts import Block, Layout
from remerge.adapters.regions import Index, Region, matrix_view
from remerge.errors import Unsupported


@dataclass(frozen=True)
class _Run:
    """A dimension along which the block is longer than one: the shares of the places in tensor
    and parameter, in rows or in columns of either."""

    tensor: Index
    tensor_rows: bool
    parameter: Index
    parameter_rows: bool

    @property
    def straight(self) -> bool:
        return self.tensor_rows == self.parameter_rows


@dataclass(frozen=True)
class _Corner:
    """Where a block begins."""

    tensor_row: int
    tensor_col: int
    parameter_row: int
    parameter_col: int


def regions_of(
    layout: Layout, parameter: str, kind: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Region, ...]:
    """The regions of a parameter with this layout, in a layer of this kind; ``shapes`` are those
    of the checkpoint's tensors."""
    found: list[Region] = []
    for block in layout.blocks:
        columns = matrix_view(shapes[block.tensor], kind)[1]
        corner, runs = _runs(block, layout.shape, columns, matrix_view(layout.shape, kind)[1])
        for part, kept in _separable(corner, runs):
            found.append(_region(block.tensor, parameter, part, kept))
    return tuple(found)


def _runs(
    block: Block, shape: Sequence[int], tensor_cols: int, parameter_cols: int
) -> tuple[_Corner, list[_Run]]:
    tensor_start, parameter_start = block.start, 0
    runs: list[_Run] = []
    for dim, axis in enumerate(block.axes):
        stride = math.prod(shape[dim + 1 :])
        tensor_start += int(axis.offset[0])
        parameter_start += int(axis.at[0]) * stride
        if len(axis.at) == 1:
            continue
        offset = shifted(axis.offset, -int(axis.offset[0]))
        place = shifted(axis.at, -int(axis.at[0]))
        tensor_rows = all_divisible(offset, tensor_cols)
        parameter_rows = stride >= parameter_cols
        if not tensor_rows and largest(offset) >= tensor_cols:
            raise Unsupported(f"A dimension of {block.tensor} runs over rows and columns.")
        unit = stride // parameter_cols if parameter_rows else stride
        runs.append(
            _Run(
                divided(offset, tensor_cols) if tensor_rows else offset,
                tensor_rows,
                multiplied(place, unit),
                parameter_rows,
            )
        )
    corner = _Corner(*divmod(tensor_start, tensor_cols), *divmod(parameter_start, parameter_cols))
    return corner, runs


def _separable(corner: _Corner, runs: Sequence[_Run]) -> Iterator[tuple[_Corner, list[_Run]]]:
    """Parts in which rows are rows throughout, or columns throughout.

    Stacked transposed matrices mix both; taken apart along the shorter kind of dimension (one part
    per expert) each part is one or the other.
    """
    straight = [run for run in runs if run.straight]
    turned = [run for run in runs if not run.straight]
    fewer, kept = sorted((straight, turned), key=lambda some: math.prod(_length(r) for r in some))
    if not fewer or not kept:
        yield corner, list(runs)
        return
    for positions in product(*(range(_length(run)) for run in fewer)):
        part = corner
        for run, position in zip(fewer, positions, strict=True):
            part = _moved(part, run, position)
        yield part, kept


def _length(run: _Run) -> int:
    return len(run.tensor)


def _moved(corner: _Corner, run: _Run, position: int) -> _Corner:
    tensor, parameter = int(run.tensor[position]), int(run.parameter[position])
    return _Corner(
        corner.tensor_row + (tensor if run.tensor_rows else 0),
        corner.tensor_col + (0 if run.tensor_rows else tensor),
        corner.parameter_row + (parameter if run.parameter_rows else 0),
        corner.parameter_col + (0 if run.parameter_rows else parameter),
    )


def _region(tensor: str, parameter: str, corner: _Corner, runs: Sequence[_Run]) -> Region:
    # Widest strides first, so that what is contiguous on disk comes out as a range.
    ordered = sorted(runs, key=lambda run: -int(run.tensor[1]))
    rows = [run for run in ordered if run.tensor_rows]
    cols = [run for run in ordered if not run.tensor_rows]
    transposed = any(not run.straight for run in runs)
    across, down = (rows, cols) if transposed else (cols, rows)
    return Region(
        tensor,
        _sum(corner.tensor_row, [run.tensor for run in rows]),
        _sum(corner.tensor_col, [run.tensor for run in cols]),
        parameter,
        _sum(corner.parameter_row, [run.parameter for run in down]),
        _sum(corner.parameter_col, [run.parameter for run in across]),
        transposed,
    )


def _sum(start: int, shares: Sequence[Index]) -> Index:
    total: Index = range(start, start + 1)
    for share in shares:
        total = outer_sum(total, share)
    return total
