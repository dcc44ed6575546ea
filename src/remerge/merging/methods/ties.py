"""TIES (Yadav et al., arXiv:2306.01708): trim, elect a sign, merge what agrees with it.

Of every delta (rows, columns) the ``density`` largest magnitudes stay; of the weighted rest the
sign with the larger total wins, and ``W' = W + lambda * sum_(agreeing) w_i delta_i / sum w_i``.
The numbers are mergekit's `ties`: at least one value of a delta stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.method import Joint, Method, Parameters, PerAdapter
from remerge.merging.methods.signs import Majority, elect
from remerge.merging.methods.trimming import Count, Measured, cuts, keep_largest


class TiesParameters(Parameters):
    """``density``: share of each delta's values that stays, 0 to 1, of every tensor or (``scope``
    model) of all together. ``majority_sign_method``: by sum (total) or by number (frequency).
    ``normalize``: divide by the weights that agree. ``lambda_``: factor of the result."""

    density: PerAdapter = (1.0,)
    scope: Measured = "tensor"
    majority_sign_method: Majority = "total"
    normalize: bool = True
    lambda_: float = Field(default=1.0, alias="lambda")


@dataclass(frozen=True)
class Ties:
    """The rule of one tensor; its preparation is the cut of every adapter."""

    weights: tuple[float, ...]
    columns: int
    parameters: TiesParameters
    name: str = "ties"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        counts = [_count(density) for density in self.parameters.density]
        return {"cuts": cuts(deltas, counts, self.parameters.scope, "cuts")}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        kept = keep_largest(deltas, window, self.columns, prepared)
        asked = self.parameters
        merged = elect(kept, self.weights, asked.majority_sign_method, normalize=asked.normalize)
        return merged * asked.lambda_


def _count(density: float) -> Count:
    if density <= 0:
        return lambda elements: 0
    return lambda elements: elements if density >= 1 else max(1, int(density * elements))


def _combine(joint: Joint, parameters: TiesParameters) -> tuple[Delta, ...]:
    return (Combined(joint, Ties(joint.weights, joint.view[1], parameters)),)


TIES = Method("ties", TiesParameters, _combine)
