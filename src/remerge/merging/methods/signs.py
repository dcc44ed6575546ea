"""Electing a sign for every value, as TIES does (Yadav et al., arXiv:2306.01708, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

# Whether the larger sum of values wins, or the larger number of adapters (PEFT's names).
Majority = Literal["total", "frequency"]

# 0.1 + 0.2 - 0.3 is 5.6e-17: what is left of weights that cancel out, as a share of them.
_ROUNDING = 1e-12


def agreeing(deltas: torch.Tensor, majority: Majority) -> torch.Tensor:
    """Which deltas (adapters, ...) have the elected sign, as booleans; a tie elects plus, and a
    delta of zero agrees with neither."""
    votes = added(deltas.sign() if majority == "frequency" else deltas)
    plus = votes >= 0
    return torch.where(plus, deltas > 0, deltas < 0)


def elect(
    deltas: torch.Tensor, weights: Sequence[float], majority: Majority, *, normalize: bool
) -> torch.Tensor:
    """``sum_i w_i delta_i`` over the adapters whose weighted delta has the elected sign; divided by
    the sum of their weights if ``normalize``, where that is not zero. ``deltas`` (adapters, rows,
    columns) are overwritten.
    """
    for delta, weight in zip(deltas, weights, strict=True):
        delta *= weight
    agree = agreeing(deltas, majority)
    total = added(deltas.mul_(agree))
    if not normalize:
        return total
    divisor = torch.zeros_like(total)
    for mask, weight in zip(agree, weights, strict=True):
        divisor.add_(mask, alpha=weight)
    nothing = divisor.abs() <= rounding_of(weights)
    return total.div_(divisor.masked_fill_(nothing, 1.0))


def rounding_of(weights: Sequence[float]) -> float:
    """The largest size of a sum of such weights that is taken for zero."""
    return _ROUNDING * sum(map(abs, weights))


def added(deltas: torch.Tensor) -> torch.Tensor:
    """The sum of deltas (adapters, ...) in their order, which no kernel changes."""
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total
