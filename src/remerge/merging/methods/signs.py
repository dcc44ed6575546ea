"""Electing a sign for every value, as TIES does (Yadav et al., arXiv:2306.01708, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

# Whether the larger sum of values wins, or the larger number of adapters (PEFT's names).
Majority = Literal["total", "frequency"]


def agreeing(deltas: torch.Tensor, majority: Majority) -> torch.Tensor:
    """Which deltas (adapters, ...) have the elected sign, as booleans; a tie elects plus, and a
    delta of zero agrees with neither."""
    votes = deltas.sign() if majority == "frequency" else deltas
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0).to(deltas)
    return deltas.sign() == elected


def elect(
    deltas: torch.Tensor, weights: Sequence[float], majority: Majority, *, normalize: bool
) -> torch.Tensor:
    """``sum_i w_i delta_i`` over the adapters whose weighted delta has the elected sign; divided by
    the sum of their weights if ``normalize``. ``deltas`` (adapters, rows, columns) are overwritten.
    """
    column = torch.tensor(weights, dtype=deltas.dtype, device=deltas.device)
    column = column.view(-1, *(1,) * (deltas.dim() - 1))
    deltas *= column
    agree = agreeing(deltas, majority)
    total = deltas.mul_(agree).sum(0)
    if not normalize:
        return total
    divisor = (agree * column).sum(0)
    return total / torch.where(divisor == 0, 1.0, divisor)
