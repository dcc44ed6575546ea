"""What a merged checkpoint has over its base: a matrix a parameter, multiplied but never held.

A parameter of the model may lie in several stored tensors, in pieces of any order (`Region`). Both
checkpoints store it alike, so that their difference is known piece by piece: it is read in blocks
of rows and multiplied from either side. A difference is rounded to float32, which is exact for
16-bit weights of like size and lets a matrix be kept where it fits; products are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from remerge.adapters.indices import as_vector, compact, shifted
from remerge.adapters.regions import Index, Region, matrix_view
from remerge.errors import BadInput, Unsupported
from remerge.sources.reading import Reader, Source

BLOCK = 2**20


@dataclass(frozen=True)
class Patch:
    """A piece of a parameter on both sides: rows and columns of the stored matrix of ``width``
    columns are rows and columns (``transposed``: columns and rows) of the parameter's."""

    base: Source
    merged: Source
    width: int
    rows: Index
    cols: Index
    at_rows: Index
    at_cols: Index
    transposed: bool


@dataclass(frozen=True)
class Block:
    """A few rows of a patch: float32 values in the order of the stored tensor."""

    values: torch.Tensor
    at_rows: slice | torch.Tensor
    at_cols: slice | torch.Tensor
    transposed: bool


@dataclass(frozen=True)
class Extent:
    """The size of a difference: its squared Frobenius norm, and whether any value changed."""

    squared: float
    changed: bool


@dataclass
class Difference:
    """MERGED - BASE of one parameter's matrix view ``shape``; with ``keep`` it is read once."""

    name: str
    base: Reader
    merged: Reader
    shape: tuple[int, int]
    patches: Sequence[Patch]
    keep: bool = False
    _kept: list[Block] | None = None
    _equal: bool = field(default=True, init=False)

    def measure(self) -> Extent:
        """The first pass. Raises `BadInput` for a value that is not finite on either side."""
        self._equal = True
        squared = 0.0
        kept: list[Block] = []
        for block in self._read():
            squared += float(block.values.to(torch.float64).square().sum())
            if self.keep:
                kept.append(block)
        if self.keep:
            self._kept = kept
        return Extent(squared, not self._equal)

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """``D @ right`` for float64 ``right`` (columns, k)."""
        out = torch.zeros(self.shape[0], right.shape[1], dtype=torch.float64)
        for block in self._blocks():
            values = block.values.to(torch.float64)
            out[block.at_rows] += (values.T if block.transposed else values) @ right[block.at_cols]
        return out

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """``D.T @ left`` for float64 ``left`` (rows, k)."""
        out = torch.zeros(self.shape[1], left.shape[1], dtype=torch.float64)
        for block in self._blocks():
            values = block.values.to(torch.float64)
            out[block.at_cols] += (values if block.transposed else values.T) @ left[block.at_rows]
        return out

    def _blocks(self) -> Iterator[Block]:
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[Block]:
        for patch in self.patches:
            for part in _parts(patch):
                base = stored_block(self.base, part.base, part)
                merged = stored_block(self.merged, part.merged, part)
                values = self._difference(base, merged)
                across, down = _place(part.at_rows), _place(part.at_cols)
                yield Block(values, across, down, part.transposed)

    def _difference(self, base: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        if base.dtype == merged.dtype and torch.equal(_bits(base), _bits(merged)):
            return torch.zeros(base.shape)
        wide, wider = base.to(torch.float64), merged.to(torch.float64)
        values = (wider - wide).to(torch.float32)
        for side, told in ((wide, "the base"), (wider, "the merged model")):
            if not torch.isfinite(side).all():
                raise BadInput(
                    f"{self.name} holds NaN or infinity in {told}.",
                    why="No adapter leads to or from such a value.",
                    hint="Check that checkpoint; it may be damaged or overflown.",
                )
        if not torch.isfinite(values).all():
            raise BadInput(f"{self.name} differs by more than float32 can say.")
        # A base that was only stored in a narrower dtype did not change.
        self._equal = self._equal and torch.equal(base.to(merged.dtype), merged)
        return values


def patches_of(
    name: str,
    base: tuple[Sequence[Region], Mapping[str, Source]],
    merged: tuple[Sequence[Region], Mapping[str, Source]],
    kind: str,
) -> tuple[Patch, ...]:
    """The pieces of a parameter in both checkpoints.

    Raises `Unsupported` where the two store it in different pieces.
    """
    before, after = ({_corner(r): r for r in regions} for regions in (base[0], merged[0]))
    if before.keys() != after.keys() or not all(
        _same(region, after[corner]) for corner, region in before.items()
    ):
        raise Unsupported(
            f"{name} is stored in other pieces in the merged model than in the base.",
            why="The two were saved by different versions of transformers.",
            hint="Load and save one of them with the transformers that saved the other.",
        )
    found: list[Patch] = []
    for corner, region in before.items():
        one, other = base[1][region.tensor], merged[1][after[corner].tensor]
        width = matrix_view(one.shape, kind)[1]
        if width != matrix_view(other.shape, kind)[1]:
            raise BadInput(
                f"{name} is stored as {tuple(one.shape)} in the base and as {tuple(other.shape)} "
                "in the merged model."
            )
        found.append(
            Patch(
                one,
                other,
                width,
                region.rows,
                region.cols,
                region.parameter_rows,
                region.parameter_cols,
                region.transposed,
            )
        )
    return tuple(found)


def window(patches: Sequence[Patch], rows: range) -> tuple[Patch, ...]:
    """The part of a parameter in these rows, which are counted anew from zero."""
    found: list[Patch] = []
    for patch in patches:
        along = patch.cols if patch.transposed else patch.rows
        clipped = _clip(patch.at_rows, along, rows)
        if clipped is None:
            continue
        at, along = clipped
        part = replace(patch, at_rows=shifted(at, -rows.start))
        part = replace(part, cols=along) if patch.transposed else replace(part, rows=along)
        found.append(part)
    return tuple(found)


def stored_block(reader: Reader, source: Source, patch: Patch) -> torch.Tensor:
    """The values of a patch (no larger than a few blocks) in the order of the stored tensor."""
    rows, cols = patch.rows, patch.cols
    if isinstance(cols, range) and cols.step == 1 and (len(rows) == 1 or len(cols) < patch.width):
        runs = [_run(reader, source, patch.width, row, row + 1, cols) for row in _numbers(rows)]
        return runs[0] if len(runs) == 1 else torch.cat(runs)
    whole = range(patch.width)
    runs = [_run(reader, source, patch.width, first, last, whole) for first, last in _runs(rows)]
    block = runs[0] if len(runs) == 1 else torch.cat(runs)
    return block if cols == whole else block[:, _place(cols)]


def assembled(reader: Reader, patches: Sequence[Patch], shape: tuple[int, int]) -> torch.Tensor:
    """The merged side of a few rows of a parameter, as stored."""
    out: torch.Tensor | None = None
    for patch in patches:
        for part in _parts(patch):
            values = stored_block(reader, part.merged, part)
            out = torch.zeros(shape, dtype=values.dtype) if out is None else out
            turned = values.T if part.transposed else values
            rows = torch.as_tensor(as_vector(part.at_rows))[:, None]
            out[rows, torch.as_tensor(as_vector(part.at_cols))] = turned
    assert out is not None
    return out


def _parts(patch: Patch) -> Iterator[Patch]:
    """The patch in blocks of about `BLOCK` stored elements, in a fixed order."""
    height = max(1, BLOCK // max(len(patch.cols), 1))
    for first in range(0, len(patch.rows), height):
        rows = patch.rows[first : first + height]
        for left in range(0, len(patch.cols), BLOCK):
            taken = slice(first, first + height), slice(left, left + BLOCK)
            down, across = taken if not patch.transposed else (taken[1], taken[0])
            yield replace(
                patch,
                rows=rows,
                cols=patch.cols[taken[1]],
                at_rows=patch.at_rows[down],
                at_cols=patch.at_cols[across],
            )


def _run(
    reader: Reader, source: Source, width: int, first: int, last: int, cols: range
) -> torch.Tensor:
    """Rows ``[first, last)``: whole ones, or part of a single one."""
    count = (last - first) * len(cols)
    return reader.values(source, first * width + cols.start, count).reshape(last - first, len(cols))


def _runs(index: Index) -> Iterator[tuple[int, int]]:
    """Maximal runs of neighbours."""
    if isinstance(index, range) and index.step == 1:
        yield index.start, index.stop
        return
    numbers = as_vector(index)
    cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    for first, last in pairwise(cuts):
        yield int(numbers[first]), int(numbers[last - 1]) + 1


def _numbers(index: Index) -> Iterator[int]:
    return (int(number) for number in index)


def _clip(at: Index, along: Index, wanted: range) -> tuple[Index, Index] | None:
    """The entries of ``at`` in a range, and what stands beside them."""
    if isinstance(at, range) and at.step == 1:
        first, last = max(at.start, wanted.start), min(at.stop, wanted.stop)
        if first >= last:
            return None
        part = slice(first - at.start, last - at.start)
        return at[part], along[part]
    numbers = as_vector(at)
    inside = (numbers >= wanted.start) & (numbers < wanted.stop)
    if not inside.any():
        return None
    return compact(numbers[inside]), compact(as_vector(along)[inside])


def _place(index: Index) -> slice | torch.Tensor:
    if isinstance(index, range) and index.step == 1:
        return slice(index.start, index.stop)
    return torch.as_tensor(as_vector(index))


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


def _corner(region: Region) -> tuple[int, int]:
    return int(region.parameter_rows[0]), int(region.parameter_cols[0])


def _same(one: Region, other: Region) -> bool:
    pairs = (
        (one.rows, other.rows),
        (one.cols, other.cols),
        (one.parameter_rows, other.parameter_rows),
        (one.parameter_cols, other.parameter_cols),
    )
    return one.transposed == other.transposed and all(
        left == right
        if isinstance(left, range) and isinstance(right, range)
        else np.array_equal(left, right)
        for left, right in pairs
    )
