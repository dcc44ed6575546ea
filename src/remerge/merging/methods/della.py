"""DELLA (Deep et al., arXiv:2406.11617): drop values at random, the smaller the more likely.

Within each row of a delta (rows, columns) the values are ranked by magnitude, 0 to n - 1; the one
of rank r stays with the chance ``p = density - epsilon + 2 epsilon r / (n - 1)``. `della` then
elects a sign for every value and takes the mean of what agrees with it; `della_linear` adds up:
``W' = W + lambda * sum_i w_i delta_i``. A vector is one row; a convolution has a row a filter.

Values are ranked as float32; of equal ones the earlier counts as larger. A mask depends on the
seed, the adapter's place, the tensor's name and the element besides. ``rescale: expected`` divides
by p as the paper does; l1 gives mergekit's numbers, but for its draws and for tensors of more than
two axes, which it ranks along the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.draws import uniform
from remerge.merging.methods.joining import Joining, add_up
from remerge.merging.methods.method import Joint, Method, Parameters, PerAdapter, Shares
from remerge.merging.methods.rescaling import Rescale, multiply, ratios
from remerge.merging.methods.signs import Majority
from remerge.merging.methods.trimming import position
from remerge.merging.selection import keys_of


class DellaLinearParameters(Parameters):
    """``density``: the mean chance of a value to stay, 0 to 1. ``epsilon``: how far the chances of
    the smallest and the largest of a row are from it. ``rescale``: to the delta's L1 norm (l1), by
    the chances (expected), or none. ``seed``: of the masks. ``normalize``: divide by the weights
    that count. ``lambda_``: factor of the result."""

    density: Shares = (1.0,)
    epsilon: PerAdapter = (0.15,)
    rescale: Rescale = "l1"
    seed: int = Field(default=0, ge=0)
    normalize: bool = False
    lambda_: float = Field(default=1.0, alias="lambda")

    @field_validator("epsilon")
    @classmethod
    def _within(cls, values: PerAdapter, info: ValidationInfo) -> PerAdapter:
        for density, epsilon in zip(info.data.get("density", ()), values, strict=False):
            least, most = density - epsilon, density + epsilon
            if epsilon < 0 or (0 < density < 1 and not (least > 0 and most < 1)):
                raise PydanticCustomError(
                    "epsilon",
                    "{epsilon} does not fit density {density}: epsilon is at least 0, and density "
                    "- epsilon and density + epsilon lie between 0 and 1, neither included",
                    {"epsilon": epsilon, "density": density},
                )
        return values


class DellaParameters(DellaLinearParameters):
    """As `della_linear`'s; ``majority_sign_method``: by sum (total) or by number (frequency)."""

    normalize: bool = True
    majority_sign_method: Majority = "total"


@dataclass(frozen=True)
class Della:
    """The rule of one tensor; its preparation is each delta's ratio of norms, if asked for."""

    joint: Joint
    parameters: DellaLinearParameters
    joining: Joining
    name: str

    @property
    def whole_rows(self) -> bool:
        return any(0.0 < density < 1.0 for density in self.parameters.density)

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        if self.parameters.rescale != "l1" or not self.whole_rows:
            return {}
        return {"ratios": ratios(deltas, self._mask)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        kept = self._mask(deltas, window, rescale=self.parameters.rescale == "expected")
        if "ratios" in prepared:
            multiply(kept, prepared["ratios"])
        return self.joining.join(kept)

    def _mask(self, deltas: torch.Tensor, window: Window, *, rescale: bool = False) -> torch.Tensor:
        """The deltas without the values that are dropped, in place; the others are divided by
        their chances if ``rescale``."""
        asked, columns = self.parameters, self.joint.view[1]
        first = position(window, columns)
        for adapter, (delta, density, epsilon) in enumerate(
            zip(deltas, asked.density, asked.epsilon, strict=True)
        ):
            if density <= 0.0:
                delta.zero_()
            elif self.joint.touching[adapter] and density < 1.0:
                draws = uniform(asked.seed, adapter, self.joint.tensor, first, delta.numel())
                # A vector, seen as a column, is one row.
                row = delta.view(1, -1) if self.joint.is_vector else delta
                chances = _chances(row, density, epsilon).view(delta.shape)
                draws = draws.view(delta.shape).to(delta.device)
                delta *= (draws < chances).view(torch.uint8).to(delta.dtype)
                if rescale:
                    delta /= chances
        return deltas


def _chances(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """The chance of every value (rows, columns) to stay; of a row's only one it is ``density``."""
    columns = delta.shape[1]
    if columns == 1:
        return torch.full_like(delta, density)
    # Keys with their places behind them, the last first: so sorting needs no order of equals.
    ranked = keys_of(delta).cpu().numpy().astype(np.int64)
    ranked <<= 32
    ranked |= np.arange(columns - 1, -1, -1)
    ranked.sort(axis=1)
    places = torch.as_tensor(columns - 1 - (ranked & 0xFFFFFFFF)).to(delta.device)
    by_rank = torch.arange(columns, dtype=delta.dtype, device=delta.device)
    by_rank.mul_(2 * epsilon / (columns - 1)).add_(density - epsilon)
    return torch.empty_like(delta).scatter_(1, places, by_rank.expand_as(delta))


def _combine(joint: Joint, parameters: DellaParameters) -> tuple[Delta, ...]:
    asked = parameters
    joining = Joining(joint.weights, asked.normalize, asked.lambda_, asked.majority_sign_method)
    return (Combined(joint, Della(joint, asked, joining, "della")),)


def _linear(joint: Joint, parameters: DellaLinearParameters) -> tuple[Delta, ...]:
    joining = add_up(joint.weights, parameters.normalize, parameters.lambda_, "della_linear")
    return (Combined(joint, Della(joint, parameters, joining, "della_linear")),)


DELLA = Method("della", DellaParameters, _combine)
DELLA_LINEAR = Method("della_linear", DellaLinearParameters, _linear)
