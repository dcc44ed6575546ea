"""DARE (Yu et al., arXiv:2311.03099): drop values at random, rescale the rest.

Every value of a delta (rows, columns) stays with the chance ``density`` and is divided by it, so
that its mean is the delta. `dare_linear` adds up what stays: ``W' = W + lambda * sum_i w_i
delta_i``; `dare_ties` elects a sign for every value and adds up what agrees with it.

A mask depends on the seed, the adapter's place, the tensor's name and the element alone. With
``rescale: l1`` the numbers are mergekit's, but for its draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.draws import keep
from remerge.merging.methods.joining import Joining, add_up
from remerge.merging.methods.method import Joint, Method, Parameters, Shares
from remerge.merging.methods.rescaling import Rescale, multiply, ratios
from remerge.merging.methods.signs import Majority
from remerge.merging.methods.trimming import position


class DareParameters(Parameters):
    """``density``: the chance of each value to stay, 0 to 1. ``rescale``: by the chance (expected),
    to the delta's L1 norm (l1), or none. ``seed``: of the masks. ``normalize``: divide by the
    weights that count. ``lambda_``: factor of the result."""

    density: Shares = (1.0,)
    rescale: Rescale = "expected"
    seed: int = Field(default=0, ge=0)
    normalize: bool = False
    lambda_: float = Field(default=1.0, alias="lambda")


class DareTiesParameters(DareParameters):
    """As DARE's; ``majority_sign_method``: by sum (total) or by number (frequency)."""

    majority_sign_method: Majority = "total"


@dataclass(frozen=True)
class Dare:
    """The rule of one tensor; its preparation is each delta's ratio of norms, if asked for."""

    joint: Joint
    parameters: DareParameters
    joining: Joining
    name: str
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        drops = any(0.0 < density < 1.0 for density in self.parameters.density)
        if self.parameters.rescale != "l1" or not drops:
            return {}
        return {"ratios": ratios(deltas, self._mask)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        kept = self._mask(deltas, window)
        if self.parameters.rescale == "expected":
            for delta, density in zip(kept, self.parameters.density, strict=True):
                delta /= density or 1.0
        elif "ratios" in prepared:
            multiply(kept, prepared["ratios"])
        return self.joining.join(kept)

    def _mask(self, deltas: torch.Tensor, window: Window) -> torch.Tensor:
        """The deltas without the values that are dropped, in place."""
        asked, first = self.parameters, position(window, self.joint.view[1])
        for adapter, (delta, density) in enumerate(zip(deltas, asked.density, strict=True)):
            if self.joint.touching[adapter] and density < 1.0:
                place = adapter, self.joint.tensor, first, delta.numel()
                delta *= keep(asked.seed, *place, density).view(delta.shape).to(delta.device)
        return deltas


def _linear(joint: Joint, parameters: DareParameters) -> tuple[Delta, ...]:
    joining = add_up(joint.weights, parameters.normalize, parameters.lambda_, "dare_linear")
    return (Combined(joint, Dare(joint, parameters, joining, "dare_linear")),)


def _ties(joint: Joint, parameters: DareTiesParameters) -> tuple[Delta, ...]:
    asked = parameters
    joining = Joining(joint.weights, asked.normalize, asked.lambda_, asked.majority_sign_method)
    return (Combined(joint, Dare(joint, asked, joining, "dare_ties")),)


DARE_LINEAR = Method("dare_linear", DareParameters, _linear)
DARE_TIES = Method("dare_ties", DareTiesParameters, _ties)
