"""Making up for the values that a random mask drops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from remerge.adapters.deltas import Window
from remerge.merging.combined import Deltas

# By each value's chance to stay; to the delta's L1 norm before, as mergekit does; or not at all.
Rescale = Literal["expected", "l1", "none"]

# Smaller norms are left as they are (mergekit's bound).
_SMALLEST = 1e-7


def ratios(deltas: Deltas, mask: Callable[[torch.Tensor, Window], torch.Tensor]) -> torch.Tensor:
    """For each adapter the L1 norm of its delta over that of what ``mask`` leaves of it, float64
    (adapters,), from one pass. ``mask`` gives masked deltas (adapters, rows, columns), and may
    overwrite what it is given."""
    before = torch.zeros(deltas.shape[0], dtype=torch.float64)
    after = before.clone()
    for window, values in deltas.blocks():
        before += _norms(values)
        after += _norms(mask(values, window))
    tiny = (before < _SMALLEST) | (after < _SMALLEST)
    return torch.where(tiny, 1.0, before / torch.where(tiny, 1.0, after))


def _norms(values: torch.Tensor) -> torch.Tensor:
    return values.abs().flatten(1).sum(1).cpu()


def multiply(deltas: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Each delta (adapters, ...) times its factor, in place."""
    for number, delta in enumerate(deltas):
        delta *= float(factors[number])
    return deltas
