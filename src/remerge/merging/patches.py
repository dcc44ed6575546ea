"""A parameter of two checkpoints as pieces of stored tensors, read a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from remerge.adapters.indices import as_vector, compact, shifted
from remerge.adapters.regions import Index, Region, matrix_view
from remerge.errors import BadInput, Unsupported
from remerge.sources.reading import Source

# Elements read at once; part of what the last bits of a sum depend on.
BLOCK = 2**20


class ReadsValues(Protocol):
    """Something that has values for every tensor of a checkpoint."""

    def values(self, source: Source, first: int, count: int) -> torch.Tensor:
        """``count`` elements of a tensor from ``first`` on, 1-D."""
        ...


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


def stored_block(reader: ReadsValues, source: Source, patch: Patch) -> torch.Tensor:
    """The values of a patch (no larger than a few blocks) in the order of the stored tensor."""
    rows, cols = patch.rows, patch.cols
    if isinstance(cols, range) and cols.step == 1 and (len(rows) == 1 or len(cols) < patch.width):
        runs = [_run(reader, source, patch.width, row, row + 1, cols) for row in _numbers(rows)]
        return runs[0] if len(runs) == 1 else torch.cat(runs)
    whole = range(patch.width)
    runs = [_run(reader, source, patch.width, first, last, whole) for first, last in _runs(rows)]
    block = runs[0] if len(runs) == 1 else torch.cat(runs)
    return block if cols == whole else block[:, place(cols)]


def parts(patch: Patch) -> Iterator[Patch]:
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
    reader: ReadsValues, source: Source, width: int, first: int, last: int, cols: range
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


def place(index: Index) -> slice | torch.Tensor:
    if isinstance(index, range) and index.step == 1:
        return slice(index.start, index.stop)
    return torch.as_tensor(as_vector(index))


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
