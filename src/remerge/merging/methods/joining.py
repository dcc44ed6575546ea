"""What methods that drop a part of every delta do with the rest: add it up, or elect signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.errors import UsageError
from remerge.merging.methods.signs import Majority, elect, rounding_of
from remerge.merging.methods.weighted import weighted_sum


@dataclass(frozen=True)
class Joining:
    """``factor * sum_i w_i delta_i``, of the deltas that agree with the elected sign if there is a
    ``majority``; divided by the weights that count if ``normalize``."""

    weights: Sequence[float]
    normalize: bool
    factor: float
    majority: Majority | None = None

    def join(self, deltas: torch.Tensor) -> torch.Tensor:
        """The change (rows, columns) from deltas (adapters, rows, columns), which may be
        overwritten."""
        if self.majority is not None:
            total = elect(deltas, self.weights, self.majority, normalize=self.normalize)
            return total.mul_(self.factor)
        total = weighted_sum(deltas, self.weights)
        if self.normalize:
            total /= sum(self.weights)
        return total.mul_(self.factor)


def add_up(weights: Sequence[float], normalize: bool, factor: float, method: str) -> Joining:
    """Sums of all deltas; refuses to divide by weights that cancel out."""
    if normalize and abs(sum(weights)) <= rounding_of(weights):
        raise UsageError(
            f"--method {method} --normalize divides by the sum of the weights, which is zero.",
            hint="Leave out --normalize for weights that cancel out.",
        )
    return Joining(weights, normalize, factor)
