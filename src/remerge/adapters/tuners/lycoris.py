"""What LoHa and LoKr share (PEFT tuners/lycoris_utils.py): layers, rank and scale."""

from __future__ import annotations

from functools import cached_property

import torch

from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import Factor
from remerge.adapters.factors import made
from remerge.adapters.patterns import Patterns

KINDS = ("Linear", "Conv2d", "Conv1d")


class LycorisConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's."""

    r: Rank = 8
    alpha: Number = 8
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Number] | None = None

    @cached_property
    def _ranks(self) -> Patterns[int]:
        return Patterns("rank_pattern", self.rank_pattern or {})

    @cached_property
    def _alphas(self) -> Patterns[float]:
        return Patterns("alpha_pattern", self.alpha_pattern or {})

    def rank(self, module: str) -> int:
        """The rank of a module by its path."""
        return self._ranks.value(module, self.r)

    def scale(self, module: str) -> float:
        """alpha / r of a module."""
        return self._alphas.value(module, self.alpha) / self.rank(module)

    def check(self) -> None:
        """Raise `BadInput` for a pattern key that is no usable regular expression."""
        self._ranks.check()
        self._alphas.check()


def core_times(core: Factor, inner: Factor, places: int) -> Factor:
    """``(r, n * places)``: a core ``(r, r, k, l)`` times ``inner (r, n)`` along its second axis.

    With the outer factor this is LyCORIS' effective convolution,
    ``sum_ij core[i, j, k, l] * outer[i, p] * inner[j, q]`` at ``[p, q, k, l]``.
    """
    rank, channels = inner.shape

    def read() -> torch.Tensor:
        values = core.read().reshape(rank, rank, places)
        return torch.einsum("ijk,jq->iqk", values, inner.read())

    return made((rank, channels * places), read)
