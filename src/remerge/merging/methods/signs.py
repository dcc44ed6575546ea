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
    return deltas.sign() == elected(deltas, majority)


def elect(
    deltas: torch.Tensor, weights: Sequence[float], majority: Majority, *, normalize: bool
) -> torch.Tensor:
    """``sum_i w_i delta_i`` over the adapters whose weighted delta has the elected sign; divided by
    the sum of their weights if ``normalize``, where that is not zero. ``deltas`` (adapters, rows,
    columns) are overwritten.
    """
    for delta, weight in zip(deltas, weights, strict=True):
        if weight != 1.0:
            delta *= weight
    signs = turn(deltas, majority)
    total = added(deltas).mul_(signs)
    if not normalize:
        return total
    divisor = weighted_counts(deltas, weights)
    nothing = divisor.abs() <= rounding_of(weights)
    return total.div_(divisor.masked_fill_(nothing, 1.0))


def turn(deltas: torch.Tensor, majority: Majority) -> torch.Tensor:
    """The elected signs; the deltas become the sizes of what agrees with them, else zero."""
    signs = elected(deltas, majority)
    deltas.mul_(signs).clamp_(min=0.0)
    return signs


def elected(deltas: torch.Tensor, majority: Majority) -> torch.Tensor:
    """The elected sign of every value, 1 or -1; a tie elects plus."""
    votes = added(deltas.sign() if majority == "frequency" else deltas)
    # In place, and without a mask: -1, 0, 1 become -0.5, 0.5, 1.5.
    return votes.sign_().add_(0.5).sign_()


def weighted_counts(kept: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The sum of the weights of the deltas that are not zero, of values that are not negative and
    are overwritten."""
    total = torch.zeros_like(kept[0])
    for mask, weight in zip(kept.sign_(), weights, strict=True):
        total.add_(mask, alpha=weight)
    return total


def rounding_of(weights: Sequence[float]) -> float:
    """The largest size of a sum of such weights that is taken for zero."""
    return _ROUNDING * sum(map(abs, weights))


def added(deltas: torch.Tensor) -> torch.Tensor:
    """The sum of deltas (adapters, ...) in their order, which no kernel changes."""
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total
