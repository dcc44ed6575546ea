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
from remerge.merging.methods.joining import Joining
from remerge.merging.methods.method import Joint, Method, Parameters, Shares
from remerge.merging.methods.signs import Majority
from remerge.merging.methods.trimming import Measured, Share, cuts, keep_largest


class TiesParameters(Parameters):
    """``density``: share of each delta's values that stays, 0 to 1, of every tensor or (``scope``
    model) of all together. ``majority_sign_method``: by sum (total) or by number (frequency).
    ``normalize``: divide by the weights that agree. ``lambda_``: factor of the result."""

    density: Shares = (1.0,)
    scope: Measured = "tensor"
    majority_sign_method: Majority = "total"
    normalize: bool = True
    lambda_: float = Field(default=1.0, alias="lambda")


@dataclass(frozen=True)
class Ties:
    """The rule of one tensor; its preparation is the cut of every adapter."""

    columns: int
    parameters: TiesParameters
    joining: Joining
    name: str = "ties"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        shares = [_share(density) for density in self.parameters.density]
        return {"cuts": cuts(deltas, shares, self.parameters.scope)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        return self.joining.join(keep_largest(deltas, window, self.columns, prepared))


def _share(density: float) -> Share:
    if density <= 0:
        return lambda elements: 0
    return lambda elements: elements if density >= 1 else max(1, int(density * elements))


def _combine(joint: Joint, parameters: TiesParameters) -> tuple[Delta, ...]:
    asked = parameters
    joining = Joining(joint.weights, asked.normalize, asked.lambda_, asked.majority_sign_method)
    return (Combined(joint, Ties(joint.view[1], asked, joining)),)


TIES = Method("ties", TiesParameters, _combine)
