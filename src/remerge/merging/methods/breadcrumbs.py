"""Model Breadcrumbs (Davari and Belilovsky, arXiv:2312.06795): drop both ends of every delta.

Of a delta (rows, columns) the share ``gamma`` of the largest magnitudes is dropped, and of the
rest the largest stay, the share ``density`` of all. `breadcrumbs` adds them up: ``W' = W + lambda *
sum_i w_i delta_i``; `breadcrumbs_ties` elects a sign for every value and adds up what agrees.

The numbers are mergekit's: where ``density + gamma`` is over 1, fewer large values are dropped;
a density of 1 drops nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.joining import Joining, add_up
from remerge.merging.methods.method import Joint, Method, Parameters, Shares
from remerge.merging.methods.signs import Majority
from remerge.merging.methods.trimming import Measured, Share, cuts, cuts_of, position


class BreadcrumbsParameters(Parameters):
    """``density``: share of each delta's values that stays, 0 to 1; ``gamma``: share of the
    largest that does not; of every tensor or (``scope`` model) of all together. ``normalize``:
    divide by the weights that count. ``lambda_``: factor of the result."""

    density: Shares = (1.0,)
    gamma: Shares = (0.01,)
    scope: Measured = "tensor"
    normalize: bool = False
    lambda_: float = Field(default=1.0, alias="lambda")


class BreadcrumbsTiesParameters(BreadcrumbsParameters):
    """As `breadcrumbs`'; ``majority_sign_method``: by sum (total) or by number (frequency)."""

    majority_sign_method: Majority = "total"


@dataclass(frozen=True)
class Breadcrumbs:
    """The rule of one tensor; its preparation is two cuts for every adapter: what is too large, and
    that with what stays."""

    columns: int
    parameters: BreadcrumbsParameters
    joining: Joining
    name: str
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        asked = self.parameters
        shares: list[Share] = []
        for density, gamma in zip(asked.density, asked.gamma, strict=True):
            shares += [_dropped(density, gamma), _reached(density, gamma)]
        return {"cuts": cuts(deltas, shares, asked.scope)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        first, found = position(window, self.columns), cuts_of(prepared)
        for delta, outliers, kept in zip(deltas, found[::2], found[1::2], strict=True):
            outliers.drop(kept.keep(delta, first), first)
        return self.joining.join(deltas)


def _dropped(density: float, gamma: float) -> Share:
    """How many of the largest are dropped, so that the density is reached."""
    if density >= 1:
        return lambda elements: 0
    return lambda elements: min(int(gamma * elements), elements - int(density * elements))


def _reached(density: float, gamma: float) -> Share:
    """How many are dropped as too large or stay."""
    dropped = _dropped(density, gamma)
    if density >= 1:
        return lambda elements: elements
    return lambda elements: dropped(elements) + int(density * elements)


def _combine(joint: Joint, parameters: BreadcrumbsParameters) -> tuple[Delta, ...]:
    joining = add_up(joint.weights, parameters.normalize, parameters.lambda_, "breadcrumbs")
    return (Combined(joint, Breadcrumbs(joint.view[1], parameters, joining, "breadcrumbs")),)


def _ties(joint: Joint, parameters: BreadcrumbsTiesParameters) -> tuple[Delta, ...]:
    asked = parameters
    joining = Joining(joint.weights, asked.normalize, asked.lambda_, asked.majority_sign_method)
    return (Combined(joint, Breadcrumbs(joint.view[1], asked, joining, "breadcrumbs_ties")),)


BREADCRUMBS = Method("breadcrumbs", BreadcrumbsParameters, _combine)
BREADCRUMBS_TIES = Method("breadcrumbs_ties", BreadcrumbsTiesParameters, _ties)
