"""Arithmetic on indices that stay ranges as long as they are evenly spaced."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from remerge.adapters.regions import Index


def as_vector(index: Index) -> npt.NDArray[np.int64]:
    """The index spelled out."""
    return np.asarray(index, dtype=np.int64)


def compact(vector: npt.NDArray[np.int64]) -> Index:
    """The vector, as a range where its entries are evenly spaced and ascending."""
    if vector.size == 1:
        return range(int(vector[0]), int(vector[0]) + 1)
    step = int(vector[1] - vector[0])
    if step <= 0 or not bool(np.all(np.diff(vector) == step)):
        return vector
    return range(int(vector[0]), int(vector[-1]) + 1, step)


def shifted(index: Index, by: int) -> Index:
    """Every entry plus ``by``."""
    if isinstance(index, range):
        return range(index.start + by, index.stop + by, index.step)
    return as_vector(index) + by


def multiplied(index: Index, by: int) -> Index:
    """Every entry times ``by``, which is positive."""
    if isinstance(index, range):
        return range(index.start * by, index.stop * by, index.step * by)
    return as_vector(index) * by


def divided(index: Index, by: int) -> Index:
    """Every entry divided by ``by``, of which all are multiples."""
    if len(index) == 1:
        only = int(index[0]) // by
        return range(only, only + 1)
    if isinstance(index, range):
        step = index.step // by
        return range(index.start // by, index.start // by + len(index) * step, step)
    return as_vector(index) // by


def largest(index: Index) -> int:
    """The greatest entry."""
    return max(index[0], index[-1]) if isinstance(index, range) else int(as_vector(index).max())


def all_divisible(index: Index, by: int) -> bool:
    """Whether every entry is a multiple of ``by``."""
    if isinstance(index, range):
        return index.start % by == 0 and (len(index) < 2 or index.step % by == 0)
    return not bool(np.any(as_vector(index) % by))


def outer_sum(outer: Index, inner: Index) -> Index:
    """``outer[i] + inner[j]`` for all i and j, the latter running faster."""
    if len(outer) == 1:
        return shifted(inner, int(outer[0]))
    if len(inner) == 1:
        return shifted(outer, int(inner[0]))
    if isinstance(outer, range) and isinstance(inner, range):
        start, length = outer.start + inner.start, len(outer) * len(inner)
        if outer.step == inner.step * len(inner):
            return range(start, start + length * inner.step, inner.step)
    return compact(np.add.outer(as_vector(outer), as_vector(inner)).reshape(-1))


def as_outer_sum(index: Index, outer: int, inner: int) -> tuple[Index, Index] | None:
    """The inverse of `outer_sum` for parts of these lengths, the second starting at zero; None
    where the index is no such sum."""
    if isinstance(index, range):
        return index[::inner], shifted(index[:inner], -index.start)
    table = as_vector(index).reshape(outer, inner)
    first, rest = table[:, 0], table[0] - table[0, 0]
    if not np.array_equal(table, np.add.outer(first, rest)):
        return None
    return compact(first), compact(rest)
