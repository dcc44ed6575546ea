"""What PEFT's `add_weighted_adapter` does to every value, of factors or of full deltas alike.

Values are pruned before weights apply: the ``int(density * n)`` largest magnitudes stay, or every
value with the chance ``density``, then divided by it. Then they are weighted and added, or TIES
takes the mean of what agrees (PEFT utils/merge_utils.py). Agreement with PEFT is exact but for
random masks, which PEFT draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from remerge.merging.draws import uniform
from remerge.merging.methods.disjoint import mean_of_agreeing, weighted_total
from remerge.merging.methods.method import Parameters, PerAdapter, Shares
from remerge.merging.methods.signs import Majority
from remerge.merging.selection import EVERYTHING, Cut, largest

# Which values stay: all, the largest, or each with the same chance.
Pruned = Literal["", "magnitude", "random"]

# Blocks of values (adapters, rows, columns) in order, each with the number of values before it.
Stacks = Callable[[], Iterator[tuple[int, torch.Tensor]]]


@dataclass(frozen=True)
class PeftRule:
    """One of PEFT's rules: ``pruned`` says which values stay, ``elects`` that signs are elected.

    ``density``, by adapter, and the others count where the rule has use for them.
    """

    pruned: Pruned = ""
    elects: bool = False
    density: PerAdapter = ()
    majority: Majority = "total"
    seed: int = 0

    def cuts(self, adapters: Sequence[int], stacks: Stacks, elements: int) -> list[Cut]:
        """For each of these adapters the cut that takes its largest values, of ``elements``."""
        found = [EVERYTHING] * len(adapters)
        if self.pruned != "magnitude":
            return found
        trimmed = [i for i, adapter in enumerate(adapters) if self.density[adapter] < 1.0]

        def blocks() -> Iterator[tuple[int, torch.Tensor]]:
            for first, values in stacks():
                yield first, values.abs().flatten(1)

        asked = [(i, _always(int(self.density[adapters[i]] * elements))) for i in trimmed]
        for i, cut in zip(trimmed, largest(blocks, asked), strict=True):
            found[i] = cut
        return found

    def combine(
        self,
        values: torch.Tensor,
        adapters: Sequence[int],
        weights: Sequence[float],
        cuts: Sequence[Cut],
        key: str,
        first: int,
    ) -> torch.Tensor:
        """One matrix from these adapters' (adapters, rows, columns), which are overwritten.

        ``key`` names what random numbers are for, ``first`` is the number of values before these.
        """
        for adapter, cut, matrix in zip(adapters, cuts, values, strict=True):
            if self.pruned == "random" and self.density[adapter] < 1.0:
                share = self.density[adapter]
                drawn = uniform(self.seed, adapter, key, first, matrix.numel())
                matrix *= (drawn.view(matrix.shape) < share) / share
            else:
                cut.keep(matrix, first)
        if self.elects:
            return mean_of_agreeing(values, weights, self.majority)
        return weighted_total(values, weights)


def _positive(values: PerAdapter) -> PerAdapter:
    if 0.0 in values:
        raise PydanticCustomError("positive", "with a density of 0 nothing is left to rescale")
    return values


def _always(count: int) -> Callable[[int], int]:
    return lambda values: count


class LinearParameters(Parameters):
    """None."""


class PrunedParameters(Parameters):
    """``density``: share of every adapter's values that stays, 0 to 1."""

    density: Shares = (1.0,)


class ElectedParameters(PrunedParameters):
    """``majority_sign_method``: elect a sign by sum (total) or by number (frequency)."""

    majority_sign_method: Majority = "total"


class DrawnParameters(PrunedParameters):
    """``seed`` of the random masks; a density must not be 0, by which PEFT divides."""

    density: Annotated[Shares, AfterValidator(_positive)] = (1.0,)
    seed: int = Field(default=0, ge=0)


class DrawnElectedParameters(DrawnParameters, ElectedParameters):
    """Those of both."""


class RankParameters(Parameters):
    """``svd_rank``: rank of the combination of each layer; None: the largest rank of any adapter in
    any layer, as in PEFT."""

    svd_rank: int | None = Field(default=None, ge=1)


class PrunedRankParameters(PrunedParameters, RankParameters):
    """Those of both."""


class ElectedRankParameters(ElectedParameters, RankParameters):
    """Those of both."""


class DrawnRankParameters(DrawnParameters, RankParameters):
    """Those of both."""


class DrawnElectedRankParameters(DrawnElectedParameters, RankParameters):
    """Those of both."""


def rule_of(name: str, parameters: Parameters) -> PeftRule:
    """The rule of PEFT's ``combination_type`` (without ``_svd``) with a recipe's parameters."""
    pruned, elects = _RULES[name]
    return PeftRule(
        pruned,
        elects,
        getattr(parameters, "density", ()),
        getattr(parameters, "majority_sign_method", "total"),
        getattr(parameters, "seed", 0),
    )


_RULES: Mapping[str, tuple[Pruned, bool]] = {
    "linear": ("", False),
    "ties": ("magnitude", True),
    "dare_linear": ("random", False),
    "dare_ties": ("random", True),
    "magnitude_prune": ("magnitude", False),
}
