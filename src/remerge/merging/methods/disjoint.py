"""The mean of what agrees: TIES as PEFT, KnOTS and Core Space have it.

Unlike `signs.elect`, which is mergekit's, the sign is elected on unweighted values, and the
weighted values that have it are divided by their number, not by their weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from remerge.merging.methods.signs import Majority, agreeing


def mean_of_agreeing(
    values: torch.Tensor, weights: Sequence[float], majority: Majority = "total"
) -> torch.Tensor:
    """``sum_(agreeing) w_i v_i / number agreeing`` of values (adapters, ...), 0 where none does; a
    tie elects plus."""
    agree = agreeing(values, majority)
    return weighted_total(values * agree, weights) / agree.sum(0).clamp(min=1)


def weighted_total(values: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """``sum_i w_i v_i`` of values (adapters, ...)."""
    column = torch.tensor(weights, dtype=values.dtype, device=values.device)
    return (values * column.view(-1, *(1,) * (values.dim() - 1))).sum(0)


def kept_by(density: float, elements: int) -> int:
    """How many of so many values the authors of KnOTS and Core Space keep: those not smaller than
    the one with which ``int(density * elements)`` larger ones remain."""
    return elements if density >= 1.0 else min(elements, int(density * elements) + 1)
