"""How the scales of a quantised matrix lie over it, and the extremes that new scales come from.

Every strategy is one grid of blocks: a tensor is one block, a channel a row, a group a piece of a
row. Experts kept in one tensor are a stack of such matrices; rows count through the whole stack,
and so do the rows of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Read, Values

# Elements of the merged tensor held at once while a block's extremes are looked for.
_PIECE = 2**20


@dataclass(frozen=True)
class Grid:
    """Blocks of ``block_rows`` x ``block_columns`` over matrices of ``rows`` x ``columns``.

    The last blocks may be ragged.
    """

    rows: int
    columns: int
    block_rows: int
    block_columns: int

    @property
    def high(self) -> int:
        """Rows of the grid over one matrix."""
        return -(-self.rows // self.block_rows)

    @property
    def wide(self) -> int:
        """Columns of the grid."""
        return -(-self.columns // self.block_columns)

    def line(self, row: int) -> int:
        """The row of the grid that a row of the stack belongs to."""
        return row // self.rows * self.high + row % self.rows // self.block_rows

    def first_row(self, line: int) -> int:
        """The first row of the stack in a row of the grid."""
        return line // self.high * self.rows + line % self.high * self.block_rows

    def stop_row(self, line: int) -> int:
        """The row of the stack after a row of the grid."""
        return min(self.first_row(line) + self.block_rows, (line // self.high + 1) * self.rows)

    def lines(self, first: int, stop: int) -> tuple[int, int]:
        """The rows of the grid, from and to, that rows ``[first, stop)`` of the stack touch."""
        return self.line(first), self.line(stop - 1) + 1

    def numbers(self, read: Read, part: StoredTensor, first: int, stop: int) -> torch.Tensor:
        """The stored numbers (lines, ``wide``) of the blocks that rows ``[first, stop)`` touch."""
        line, end = self.lines(first, stop)
        return read(part, line * self.wide, (end - line) * self.wide).view(-1, self.wide)

    def spread(self, numbers: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """`numbers` at each element of rows ``[first, stop)``: (stop - first, ``columns``), or
        one column where the grid has but one."""
        spread = numbers if self.block_rows == 1 else numbers[self._positions(first, stop)]
        if self.wide == 1:
            return spread
        wide = spread.unsqueeze(2).expand(-1, -1, self.block_columns)
        return wide.flatten(1)[:, : self.columns]

    def _positions(self, first: int, stop: int) -> torch.Tensor:
        rows = torch.arange(first, stop)
        lines = rows // self.rows * self.high + rows % self.rows // self.block_rows
        return lines - self.line(first)


def bands(grid: Grid, first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Rows ``[first, stop)`` in pieces of about 2^20 elements, cut between blocks unless a block
    is several times as large."""
    high = grid.block_rows if grid.block_rows * grid.columns <= 4 * _PIECE else 1
    step = max(_PIECE // (grid.columns * high), 1) * high
    while first < stop:
        end = min((first // step + 1) * step, stop)
        yield first, end
        first = end


def touched_rows(columns: int, first: int, count: int) -> tuple[int, int]:
    """The rows, from and to, that elements ``[first, first + count)`` of a matrix lie in."""
    return first // columns, -(-(first + count) // columns)


def by_matrix(rows: int, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Rows ``[first, stop)`` of a stack of matrices as (matrix, from, to)."""
    for matrix in range(first // rows, -(-stop // rows)):
        yield matrix, max(first - matrix * rows, 0), min(stop - matrix * rows, rows)


def extremes(grid: Grid, values: Values, line: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest value of each block in rows ``[line, end)`` of the grid, zero
    among them, as float32 (end - line, ``wide``)."""
    low = torch.zeros(end - line, grid.wide)
    high = torch.zeros(end - line, grid.wide)
    first, stop = grid.first_row(line), grid.stop_row(end - 1)
    step = max(_PIECE // grid.columns, 1)
    for at in range(first, stop, step):
        until = min(at + step, stop)
        found = values(at * grid.columns, (until - at) * grid.columns).to(torch.float32)
        blocks = found.view(until - at, grid.columns)
        beyond = grid.wide * grid.block_columns - grid.columns
        if beyond:
            blocks = torch.nn.functional.pad(blocks, (0, beyond))
        blocks = blocks.view(until - at, grid.wide, grid.block_columns)
        lines = torch.arange(at, until)
        lines = lines // grid.rows * grid.high + lines % grid.rows // grid.block_rows - line
        index = lines.unsqueeze(1).expand(-1, grid.wide)
        low.scatter_reduce_(0, index, blocks.amin(dim=2), "amin")
        high.scatter_reduce_(0, index, blocks.amax(dim=2), "amax")
    return low, high


def largest(grid: Grid, values: Values, line: int, end: int) -> torch.Tensor:
    """The largest magnitude of each block in rows ``[line, end)`` of the grid, as float32."""
    low, high = extremes(grid, values, line, end)
    # Of what is not a number the sign goes: vector instructions and others leave another one.
    return torch.maximum(-low, high).abs()
