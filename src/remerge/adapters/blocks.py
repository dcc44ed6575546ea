"""Steps written for a parameter of the model, block by block, and put where it lies on disk.

Most families change a weight in ways that are no sum of two factors: a product of them, a rotation
of the base's rows, a scale. Such a `BlockStep` speaks of rows and columns of the parameter's matrix
view; `Placed` translates for a tensor that stores them elsewhere, in another order or transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

from remerge.adapters.deltas import BaseMatrix, Decomposes, Delta, Factor, Load, Prepared, Window
from remerge.adapters.regions import Index, Region
from remerge.errors import Unsupported

_BLOCK_ELEMENTS = 2**20


@runtime_checkable
class BlockStep(Protocol):
    """A change of one parameter, answered for any rows and columns of its matrix view.

    ``band`` says what a value's change needs of the base: 0, that value alone; ``n``, the whole
    rows ``[k * n, (k + 1) * n)`` around it. ``gathers`` says that `prepare` reads the base.
    """

    @property
    def factors(self) -> tuple[Factor, ...]: ...

    @property
    def band(self) -> int: ...

    @property
    def gathers(self) -> bool: ...

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """Numbers that need more of the base than a band of rows, computed once; {} when none."""
        ...

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        """Change ``block``, the float64 values of these rows and columns, in place.

        With a ``band``, the rows are whole bands in order and the columns are all there are.
        """
        ...


# What a family may ask of a parameter.
Step = Delta | BlockStep


@dataclass(frozen=True)
class Placed:
    """A block step as a delta of the tensor that holds (a part of) its parameter.

    ``view`` is the parameter's matrix view.
    """

    step: BlockStep
    region: Region
    view: tuple[int, int]
    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return self.step.factors

    @property
    def name(self) -> str:
        return type(self.step).__name__

    @property
    def whole_rows(self) -> bool:
        """Whether a row of the tensor must be changed as a whole, with its band."""
        return self.step.band > 0

    def widen(self, rows: range) -> range:
        """The smallest range of the tensor's rows around these that can be changed alone."""
        held = self.region.rows
        first, last = int(min(held)), int(max(held))
        if rows.stop <= first or rows.start > last:
            return rows
        if self.region.transposed or not isinstance(held, range):
            # The parameter's rows lie across the tensor's: any of them needs them all.
            return range(min(rows.start, first), max(rows.stop, last + 1))
        offset = first - self.region.parameter_rows[0] % self.step.band
        start = max(rows.start, first) - offset
        stop = min(rows.stop, last + 1) - offset
        start, stop = start - start % self.step.band, -(-stop // self.step.band) * self.step.band
        start, stop = max(start + offset, first), min(stop + offset, last + 1)
        return range(min(rows.start, start), max(rows.stop, stop))

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of a decomposition of the parameter, 0 where the step asks for none."""
        return self.step.bytes_needed(self.view) if isinstance(self.step, Decomposes) else 0

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return self.step.prepare(_ParameterMatrix(base, self.region), load)

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        down, rows = _meeting(window.rows, self.region.rows)
        across, cols = _meeting(window.cols, self.region.cols)
        if not len(rows) or not len(cols):
            return
        block = _taken(tile, down, across)
        turned = block.T.contiguous() if self.region.transposed else block
        along = (cols, rows) if self.region.transposed else (rows, cols)
        self.step.change(
            turned,
            _picked(self.region.parameter_rows, along[0]),
            _picked(self.region.parameter_cols, along[1]),
            load,
            prepared,
        )
        if self.region.transposed:
            block.copy_(turned.T)
        if not isinstance(down, slice) or not isinstance(across, slice):
            _put(tile, down, across, block)


def place_block(step: BlockStep, region: Region, view: tuple[int, int]) -> Placed:
    """The step as a delta of the region's tensor. Raises `Unsupported` where the tensor holds only
    a part of what the step needs together."""
    across = region.rows if region.transposed else region.cols
    rows = len(region.cols if region.transposed else region.rows)
    if step.band and len(across) != view[1]:
        raise _parted(step, region)
    bands_cut = step.band > 1 and not _whole_bands(region.parameter_rows, step.band, view[0])
    if bands_cut or (step.gathers and (rows, len(across)) != view):
        raise _parted(step, region)
    return Placed(step, region, view)


def _whole_bands(rows: Index, band: int, height: int) -> bool:
    """Whether the rows are runs of whole bands (the last band of a parameter may be short)."""
    positions = np.asarray(rows)
    if (np.diff(positions) != 1).any():
        return False
    stop = int(positions[-1]) + 1
    return int(positions[0]) % band == 0 and (stop % band == 0 or stop == height)


def _parted(step: BlockStep, region: Region) -> Unsupported:
    return Unsupported(
        f"{type(step).__name__} on {region.parameter}, of which {region.tensor} holds only a part.",
        why="Its values depend on others that lie in another tensor.",
        hint="Serve it as an adapter, or merge onto a base saved by transformers itself.",
    )


# Where a region's positions meet a window: places in the window's block, and positions within the
# region, as ranges where they run.
_Places = slice | torch.Tensor


def _meeting(window: range, held: Index) -> tuple[_Places, Index]:
    if isinstance(held, range) and held.step == 1:
        first, last = max(window.start, held.start), min(window.stop, held.stop)
        if first >= last:
            return slice(0, 0), range(0)
        places = slice(first - window.start, last - window.start)
        return places, range(first - held.start, last - held.start)
    positions = np.asarray(held, dtype=np.int64)
    inside = np.nonzero((positions >= window.start) & (positions < window.stop))[0]
    return torch.as_tensor(positions[inside] - window.start), inside


def _picked(held: Index, at: Index) -> Index:
    if isinstance(held, range) and isinstance(at, range):
        return held[at.start : at.stop]
    return np.asarray(held, dtype=np.int64)[np.asarray(at, dtype=np.int64)]


def _taken(tile: torch.Tensor, down: _Places, across: _Places) -> torch.Tensor:
    """The block at these places: a view where they run, else a copy."""
    return tile[down][:, across]


def _put(tile: torch.Tensor, down: _Places, across: _Places, block: torch.Tensor) -> None:
    if isinstance(down, slice):
        tile[down][:, across] = block
    elif isinstance(across, slice):
        tile[down, across] = block
    else:
        tile[down.unsqueeze(1), across] = block


@dataclass(frozen=True)
class _ParameterMatrix:
    """The base as the parameter sees it, read through the tensor that holds it."""

    base: BaseMatrix
    region: Region

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = len(self.region.rows), len(self.region.cols)
        return (cols, rows) if self.region.transposed else (rows, cols)

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def other(self, tensor: str) -> BaseMatrix:
        return self.base.other(tensor)

    def rows(self, rows: range) -> torch.Tensor:
        order = np.argsort(np.asarray(self.region.parameter_rows), kind="stable")
        columns = np.argsort(np.asarray(self.region.parameter_cols), kind="stable")
        wanted = order[rows.start : rows.stop]
        if not self.region.transposed:
            down = np.asarray(self.region.rows)[wanted]
            across = np.asarray(self.region.cols)[columns]
            return _gathered(self.base, down)[:, torch.as_tensor(across)]
        down = np.asarray(self.region.rows)[columns]
        across = torch.as_tensor(np.asarray(self.region.cols)[wanted])
        step = max(1, _BLOCK_ELEMENTS // self.base.shape[1])
        blocks = [
            _gathered(self.base, down[first : first + step])[:, across]
            for first in range(0, down.size, step)
        ]
        return torch.cat(blocks).T.contiguous()


def other_parameter(base: BaseMatrix, region: Region) -> BaseMatrix:
    """Another parameter of the base that a step prepares on, given where all of it lies."""
    return _ParameterMatrix(base.other(region.tensor), region)


def _gathered(base: BaseMatrix, rows: np.ndarray) -> torch.Tensor:
    """These rows of the base, in this order."""
    first = int(rows.min())
    block = base.rows(range(first, int(rows.max()) + 1))
    return block[torch.as_tensor(rows - first)]


def in_blocks(
    base: BaseMatrix, consume: Callable[[range, torch.Tensor], None], band: int = 1
) -> None:
    """Give the base's rows in order, about 2^20 values at a time in whole bands.

    The blocks are the same whatever memory or threads there are, and so are sums over them.
    """
    rows, columns = base.shape
    step = max(band, _BLOCK_ELEMENTS // max(columns, 1) // band * band)
    for first in range(0, rows, step):
        block = range(first, min(first + step, rows))
        consume(block, base.rows(block))


def span_of(index: Index) -> slice | torch.Tensor:
    """What selects these positions from a tensor's axis."""
    if isinstance(index, range) and index.step == 1:
        return slice(index.start, index.stop)
    return torch.as_tensor(np.asarray(index, dtype=np.int64))
