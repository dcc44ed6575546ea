"""SCE (Wan et al., arXiv:2408.07990): select, calculate, erase.

Of a tensor's values the share ``select_topk`` stays whose deltas (rows, columns) have the largest
variance over the adapters; adapter i gets the weight ``q_i = mean(delta_i^2) / sum_j
mean(delta_j^2)`` of what stayed; the sign with the larger sum is elected for each value, and ``W' =
W + sum_(agreeing) q_i delta_i / sum_(agreeing) q_i``. There are no other weights.

The numbers are mergekit's, its absolute bounds with them: where all mean squares together are below
1e-6, as those of small adapters are, all weights are equal, and divisors below 1e-6 count as 1e-6.
An adapter that leaves a tensor alone counts with a delta of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.signs import added, turn, weighted_counts
from remerge.merging.methods.trimming import as_tensor, cuts_of, position
from remerge.merging.methods.weighted import weighted_sum
from remerge.merging.selection import NOTHING, largest

_SMALLEST = 1e-6


class SceParameters(Parameters):
    """``select_topk``: share of the values that differ between adapters to keep, 0 to 1; 1 keeps
    those that do not differ too."""

    select_topk: float = Field(default=1.0, ge=0, le=1)


@dataclass(frozen=True)
class Sce:
    """The rule of one tensor; its preparation is the cut of the variances (1, 2), none where all
    values stay, and the adapters' weights."""

    columns: int
    select_topk: float
    name: str = "sce"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        prepared: dict[str, torch.Tensor] = {}
        if self.select_topk < 1:
            prepared["cuts"] = self._cuts(deltas)
        squares = torch.zeros(deltas.shape[0], dtype=torch.float64)
        for window, values in deltas.blocks():
            kept = self._select(values, window, prepared)
            squares += kept.square_().flatten(1).sum(1).cpu()
        means = squares / max(deltas.elements, 1)
        total = means.sum()
        equal = torch.full_like(means, 1 / len(means))
        prepared["weights"] = means / total if total >= _SMALLEST else equal
        return prepared

    def _cuts(self, deltas: Deltas) -> torch.Tensor:
        if self.select_topk <= 0:
            return as_tensor([NOTHING])

        def blocks() -> Iterator[tuple[int, torch.Tensor]]:
            for window, values in deltas.blocks():
                yield position(window, self.columns), _variance(values).view(1, -1)

        def count(differ: int) -> int:
            # The product is float32's in mergekit: 0.29 of 100 are 29 there, and 28 in float64.
            return min(differ, int(torch.tensor(differ) * self.select_topk))

        return as_tensor(largest(blocks, [(0, count)]))

    def _select(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        """The deltas without the values whose variance is too small, in place."""
        if "cuts" in prepared:
            cut = cuts_of(prepared)[0]
            # No variance is negative: what is kept is 1.
            deltas *= cut.keep(_variance(deltas), position(window, self.columns)).sign_()
        return deltas

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        kept = self._select(deltas, window, prepared)
        weights = [float(weight) for weight in prepared["weights"]]
        signs = turn(kept, "total")
        total = weighted_sum(kept, weights).mul_(signs)
        return total.div_(weighted_counts(kept, weights).clamp_(min=_SMALLEST))


def _variance(deltas: torch.Tensor) -> torch.Tensor:
    """The variance of every value over the adapters, their number the divisor."""
    mean = added(deltas).div_(len(deltas))
    total = torch.zeros_like(mean)
    for delta in deltas:
        total.add_((delta - mean).square_())
    return total.div_(len(deltas))


def _combine(joint: Joint, parameters: SceParameters) -> tuple[Delta, ...]:
    return (Combined(joint, Sce(joint.view[1], parameters.select_topk)),)


SCE = Method("sce", SceParameters, _combine, weighted=False)
