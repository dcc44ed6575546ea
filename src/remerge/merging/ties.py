"""float32 outputs near a rounding tie, recomputed exactly.

float64 holds 29 bits more than float32, so the order in which a matrix product is summed decides
the rounding of about one element in 2^29 / r, and factors of few bits (bfloat16) often land on a
tie exactly. Elements whose float64 result lies within 2^-40 (relative to the terms) of a tie are
summed again in pairs of float64 that lose nothing, and in rational numbers where even a pair would.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from remerge.adapters.deltas import (
    Added,
    Change,
    Load,
    LowRank,
    Replaced,
    ReplacedRows,
    Window,
    rows_of,
)

_NEAR = 2.0**-40
# Few calls: threads take turns between them. Of a slab's float64, half a level-2 cache.
_SLAB = 2**17
_EXACT = (LowRank, Added, Replaced, ReplacedRows)
# Splits a float64 into two halves whose products are exact (Dekker 1971).
_SPLITTER = 2.0**27 + 1

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def settle_ties(
    change: Change, source: torch.Tensor | None, tile: torch.Tensor, window: Window, load: Load
) -> None:
    """Replace near-tie values of ``tile`` by float64 numbers that round to float32 exactly right.

    Steps that are not sums of products (DoRA's norms, a re-derived residual) are left as they are.
    """
    if not all(isinstance(step, _EXACT) for step in change.steps):
        return
    flat = _near_ties(tile.reshape(-1), source)
    if not len(flat):
        return
    rows, cols = np.divmod(flat, tile.shape[1])
    base = np.zeros(len(rows))
    if source is not None:
        base = source.view(tile.shape)[rows, cols].to(torch.float64).numpy(force=True)
    values = tile.numpy(force=True)[rows, cols]
    finite = np.isfinite(base)
    places = rows + window.rows.start, cols + window.cols.start
    if all(isinstance(step, LowRank) for step in change.steps):
        sums, doubtful = _sum_pairs(change, base, *places, load)
        values = np.where(finite, sums, values)
    else:
        doubtful = np.ones(len(rows), dtype=bool)
    for i in np.nonzero(doubtful & finite)[0]:
        row, col = int(places[0][i]), int(places[1][i])
        values[i] = _toward(_exact(change, float(base[i]), row, col, load))
    tile[rows, cols] = torch.as_tensor(values, device=tile.device)


def _near_ties(tile: torch.Tensor, source: torch.Tensor | None) -> Places:
    """The finite elements that lie near a tie; in slabs that stay in cache, and need no new pages
    for what is computed on the way."""
    found: list[Places] = []
    for at in range(0, tile.numel(), _SLAB):
        values = tile[at : at + _SLAB]
        margin = values.abs()
        if source is not None:
            margin += source[at : at + _SLAB].abs().to(tile.device)
        margin *= _NEAR
        near = (values - margin).to(torch.float32) != (values + margin).to(torch.float32)
        places = np.flatnonzero(near.numpy(force=True))
        # What is not finite differs from itself as well: looked at here, where it is little.
        found.append(places[np.isfinite(values.numpy(force=True)[places])] + at)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _sum_pairs(
    change: Change, base: Floats, rows: Places, cols: Places, load: Load
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Sums of low-rank steps as pairs ``high + low``, moved off ties; and where these do not do.

    TwoSum and TwoProduct (Knuth, Dekker) give each operation's error exactly; a sum is in doubt
    where adding up the errors itself lost something and the high part is a tie.
    """
    high, low = base, np.zeros_like(base)
    lossy = np.zeros(len(base), dtype=bool)
    for step in change.steps:
        assert isinstance(step, LowRank)
        i, j = rows - step.row, cols - step.col
        inside = (i >= 0) & (i < step.left.shape[0]) & (j >= 0) & (j < step.right.shape[1])
        if not inside.any():
            continue
        i, j = np.where(inside, i, 0), np.where(inside, j, 0)
        first = int(i.min())
        left = rows_of(step.left, slice(first, int(i.max()) + 1), load).numpy(force=True)
        right = load(step.right).numpy(force=True)
        total, error = np.zeros_like(base), np.zeros_like(base)
        for k in range(right.shape[0]):
            product, rest = _product(left[i - first, k], right[k, j])
            total, lost = _sum(total, product)
            for part in (lost, rest):
                error, dropped = _sum(error, part)
                lossy |= dropped != 0
        scaled, rest = _product(total, np.full_like(base, step.scale))
        more, dropped = _product(error, np.full_like(base, step.scale))
        lossy |= dropped != 0
        scaled, rest, more = (np.where(inside, part, 0.0) for part in (scaled, rest, more))
        high, lost = _sum(high, scaled)
        for part in (lost, rest, more):
            low, dropped = _sum(low, part)
            lossy |= dropped != 0
    high, low = _sum(high, low)
    ties = _is_tie(high)
    moved = np.nextafter(high, np.where(low > 0, np.inf, -np.inf))
    return np.where(ties & (low != 0), moved, high), ties & lossy


def _sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """``a + b`` and its rounding error, exactly (Knuth's TwoSum)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """``a * b`` and its rounding error, exactly (Dekker's TwoProduct)."""
    product = a * b
    a_high = _SPLITTER * a - (_SPLITTER * a - a)
    b_high = _SPLITTER * b - (_SPLITTER * b - b)
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _exact(change: Change, base: float, row: int, col: int, load: Load) -> Fraction:
    value = Fraction(base)
    for step in change.steps:
        if isinstance(step, LowRank):
            i, j = row - step.row, col - step.col
            if 0 <= i < step.left.shape[0] and 0 <= j < step.right.shape[1]:
                left = _fractions(rows_of(step.left, slice(i, i + 1), load)[0])
                right = _fractions(load(step.right)[:, j])
                products = (a * b for a, b in zip(left, right, strict=True))
                value += Fraction(step.scale) * sum(products, Fraction(0))
        elif isinstance(step, Added):
            if 0 <= row - step.row < step.values.shape[0]:
                value += Fraction(step.scale) * Fraction(
                    float(load(step.values)[row - step.row, col])
                )
        elif isinstance(step, Replaced):
            i, j = row - step.row, col - step.col
            if 0 <= i < step.values.shape[0] and 0 <= j < step.values.shape[1]:
                value = Fraction(float(rows_of(step.values, slice(i, i + 1), load)[0, j]))
        elif isinstance(step, ReplacedRows) and row in step.indices:
            value = Fraction(float(load(step.values)[step.indices.index(row), col]))
    return value


def _fractions(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(float(value)) for value in values.numpy(force=True)]


def _toward(exact: Fraction) -> float:
    """A float64 on the same side of every float32 tie as the exact value.

    No float64 lies between the exact value and the nearest one, so only a tie itself can mislead;
    one step from it towards the exact value reaches no other (they are 2^29 steps apart).
    """
    near = float(exact)
    if Fraction(near) == exact or not bool(_is_tie(np.array(near))):
        return near
    return math.nextafter(near, math.inf if exact > Fraction(near) else -math.inf)


def _is_tie(values: Floats) -> Any:
    """Which float64 numbers lie halfway between two float32 numbers."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
        beyond = np.nextafter(
            rounded, np.where(values > rounded, np.inf, -np.inf), dtype=np.float32
        )
    middle = (rounded.astype(np.float64) + beyond.astype(np.float64)) / 2
    return (values != rounded) & (middle == values)
