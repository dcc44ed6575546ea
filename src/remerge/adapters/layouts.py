"""Where the elements of a rearranged tensor come from, without any element.

Loading a checkpoint into a model stacks, concatenates, splits, transposes and reshapes tensors.
A `Layout` follows such steps by arithmetic on one index per dimension, so that its cost is that
of the sides of a weight and not of its area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from remerge.adapters.indices import (
    as_outer_sum,
    as_vector,
    compact,
    multiplied,
    outer_sum,
    shifted,
)
from remerge.adapters.regions import Index
from remerge.errors import Unsupported

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """One dimension of a block: the positions it fills, and for each its share of the place (the
    flat offset) of an element in the tensor it comes from."""

    at: Index
    offset: Index


# A dimension of size one.
_POINT = Axis(range(1), range(1))


@dataclass(frozen=True)
class Block:
    """A box of a layout that comes from one tensor: the element at ``axes[d].at[i_d]`` lies at
    flat offset ``start + sum(axes[d].offset[i_d])`` of that tensor."""

    tensor: str
    start: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Layout:
    """A tensor as blocks of others."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


def whole(tensor: str, shape: Sequence[int]) -> Layout:
    """A tensor as it is stored."""
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    axes = tuple(
        Axis(range(size), range(0, size * stride, stride))
        for size, stride in zip(shape, strides, strict=True)
        if size * stride
    )
    empty = len(axes) < len(shape)
    return Layout(tuple(shape), () if empty else (Block(tensor, 0, axes),))


def take(layout: Layout, dim: int, start: int, stop: int) -> Layout:
    """The positions from ``start`` to ``stop`` of one dimension."""
    blocks: list[Block] = []
    for block in layout.blocks:
        axis = _between(block.axes[dim], start, stop)
        if axis is not None:
            blocks.append(replace(block, axes=_with(block.axes, dim, axis)))
    return Layout(_with(layout.shape, dim, stop - start), tuple(blocks))


def concatenate(layouts: Sequence[Layout], dim: int) -> Layout:
    """Layouts one after another along one dimension."""
    others = {_with(layout.shape, dim, 0) for layout in layouts}
    if len(others) != 1:
        raise ValueError(f"shapes {sorted(others)} do not fit together along dimension {dim}")
    blocks: list[Block] = []
    length = 0
    for layout in layouts:
        for block in layout.blocks:
            axis = block.axes[dim]
            axis = Axis(shifted(axis.at, length), axis.offset)
            blocks.append(replace(block, axes=_with(block.axes, dim, axis)))
        length += layout.shape[dim]
    return Layout(_with(layouts[0].shape, dim, length), tuple(blocks))


def permute(layout: Layout, order: Sequence[int]) -> Layout:
    """The dimensions in another order."""
    blocks = (
        replace(block, axes=tuple(block.axes[dim] for dim in order)) for block in layout.blocks
    )
    return Layout(tuple(layout.shape[dim] for dim in order), tuple(blocks))


def reshape(layout: Layout, shape: Sequence[int]) -> Layout:
    """The same elements in the same order under another shape."""
    if math.prod(shape) != math.prod(layout.shape):
        raise ValueError(f"shape {layout.shape} cannot be read as {tuple(shape)}")
    if not layout.blocks:
        return Layout(tuple(shape), ())
    blocks: list[Block] = [replace(block, axes=()) for block in layout.blocks]
    rests = [block.axes for block in layout.blocks]
    for old, new in _matching(layout.shape, shape):
        grown: list[Block] = []
        grown_rests: list[tuple[Axis, ...]] = []
        for block, rest in zip(blocks, rests, strict=True):
            merged = _merge(rest[: len(old)], old)
            for axes in _split(merged, new):
                # A dimension of size one may vanish, the place it stood for does not.
                start = block.start + (0 if new else int(merged.offset[0]))
                grown.append(Block(block.tensor, start, block.axes + axes))
                grown_rests.append(rest[len(old) :])
        blocks, rests = grown, grown_rests
    return Layout(tuple(shape), tuple(blocks))


def _with(items: tuple[T, ...], position: int, item: T) -> tuple[T, ...]:
    return (*items[:position], item, *items[position + 1 :])


def _between(axis: Axis, start: int, stop: int) -> Axis | None:
    """The part of an axis at these positions, counted from ``start``."""
    if isinstance(axis.at, range) and axis.at.step == 1:
        first, last = max(axis.at.start, start), min(axis.at.stop, stop)
        if first >= last:
            return None
        part = slice(first - axis.at.start, last - axis.at.start)
        return Axis(range(first - start, last - start), axis.offset[part])
    at = as_vector(axis.at)
    chosen = (at >= start) & (at < stop)
    if not chosen.any():
        return None
    return Axis(compact(at[chosen] - start), compact(as_vector(axis.offset)[chosen]))


def _matching(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """The smallest runs of old and new dimensions that hold equally many elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[first_i:i]) != math.prod(new[first_j:j]):
            if math.prod(old[first_i:i]) < math.prod(new[first_j:j]):
                i += 1
            else:
                j += 1
        yield old[first_i:i], new[first_j:j]


def _merge(axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    merged = _POINT
    for axis, size in zip(axes, sizes, strict=True):
        at = outer_sum(multiplied(merged.at, size), axis.at)
        merged = Axis(at, outer_sum(merged.offset, axis.offset))
    return merged


def _split(axis: Axis, sizes: Sequence[int]) -> Iterator[tuple[Axis, ...]]:
    """One axis as several; cut into more than one box where it is not a box under these sizes."""
    if len(sizes) < 2:
        yield (axis,) * len(sizes)
        return
    if sizes[0] == 1 or math.prod(sizes[1:]) == 1:
        first, rest = (_POINT, axis) if sizes[0] == 1 else (axis, _POINT)
        for tail in _split(rest, sizes[1:]):
            yield (first, *tail)
        return
    if not isinstance(axis.at, range) or axis.at.step != 1:
        raise Unsupported(f"A dimension with gaps would have to be split into {tuple(sizes)}.")
    inner = math.prod(sizes[1:])
    for first, last in _boxes(axis.at, inner):
        offset = axis.offset[first - axis.at.start : last - axis.at.start]
        rows = range(first // inner, (last - 1) // inner + 1)
        width = (last - first) // len(rows)
        shares = as_outer_sum(offset, len(rows), width)
        if shares is None:
            raise Unsupported(f"A permuted dimension would have to be split into {tuple(sizes)}.")
        head = Axis(rows, shares[0])
        for tail in _split(Axis(range(first % inner, first % inner + width), shares[1]), sizes[1:]):
            yield (head, *tail)


def _boxes(at: range, inner: int) -> Iterator[tuple[int, int]]:
    """The fewest pieces of a range that are each part of one row, or whole rows."""
    head = min(-(-at.start // inner) * inner, at.stop)
    tail = max(at.stop // inner * inner, head)
    for first, last in ((at.start, head), (head, tail), (tail, at.stop)):
        if first < last:
            yield first, last
