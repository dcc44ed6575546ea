"""``W' = W + sum_i w_i trim(delta_i)``: of every delta the largest magnitudes alone.

``trim`` keeps the int(density * n) largest of the n values of a delta (rows, columns), before its
weight: PEFT's `magnitude_prune`, which it has on factors and on the SVD of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.method import Joint, Method, Parameters, Shares
from remerge.merging.methods.trimming import Measured, Share, cuts, keep_largest
from remerge.merging.methods.weighted import weighted_sum


class MagnitudePruneParameters(Parameters):
    """``density``: share of each delta's values that stays, 0 to 1, of every tensor or (``scope``
    model) of all together."""

    density: Shares = (1.0,)
    scope: Measured = "tensor"


@dataclass(frozen=True)
class MagnitudePrune:
    """The rule of one tensor; its preparation is the cut of every adapter."""

    weights: tuple[float, ...]
    columns: int
    parameters: MagnitudePruneParameters
    name: str = "magnitude_prune"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        shares = [_share(density) for density in self.parameters.density]
        return {"cuts": cuts(deltas, shares, self.parameters.scope)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        return weighted_sum(keep_largest(deltas, window, self.columns, prepared), self.weights)


def _share(density: float) -> Share:
    return lambda elements: int(density * elements)


def _combine(joint: Joint, parameters: MagnitudePruneParameters) -> tuple[Delta, ...]:
    return (Combined(joint, MagnitudePrune(joint.weights, joint.view[1], parameters)),)


MAGNITUDE_PRUNE = Method("magnitude_prune", MagnitudePruneParameters, _combine)
