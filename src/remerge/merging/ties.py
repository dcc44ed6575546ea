"""float32 outputs near a rounding tie, recomputed exactly.

float64 holds 29 bits more than float32, so the order in which a matrix product is summed decides
the rounding of about one element in 2^29 / r. Elements whose float64 result lies within 2^-40
(relative to the terms) of a tie are summed again as rational numbers, which have no order.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
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
_EXACT = (LowRank, Added, Replaced, ReplacedRows)


def settle_ties(
    change: Change, source: torch.Tensor | None, tile: torch.Tensor, window: Window, load: Load
) -> None:
    """Replace near-tie values of ``tile`` by float64 numbers that round to float32 exactly right.

    Steps that are not sums of products (DoRA's norms, a re-derived residual) are left as they are.
    """
    if not all(isinstance(step, _EXACT) for step in change.steps):
        return
    margin = tile.abs()
    if source is not None:
        margin += source.view(tile.shape).abs().to(tile.device)
    margin *= _NEAR
    near = (tile - margin).to(torch.float32) != (tile + margin).to(torch.float32)
    near &= tile.isfinite()
    for row, col in np.argwhere(near.numpy(force=True)):
        base = 0.0 if source is None else float(source.view(tile.shape)[int(row), int(col)])
        if not math.isfinite(base):
            continue
        exact = _exact(change, base, window.rows[int(row)], window.cols[int(col)], load)
        tile[row, col] = _toward(exact)


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
    if Fraction(near) == exact or not _is_tie(near):
        return near
    return math.nextafter(near, math.inf if exact > Fraction(near) else -math.inf)


def _is_tie(value: float) -> bool:
    """Whether a float64 lies halfway between two float32 numbers."""
    rounded = np.float32(value)
    beyond = np.nextafter(rounded, np.float32(math.copysign(math.inf, value - float(rounded))))
    return value != float(rounded) and (float(rounded) + float(beyond)) / 2 == value
