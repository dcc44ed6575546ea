"""HiRA (ICLR 2025; PEFT tuners/hira): ``W + W * (B @ A)``, elementwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared, rows_of
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix, turned
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.patterns import Patterns
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.weights import (
    CONVOLUTIONS,
    fits,
    has_no_groups,
    has_rank,
    linear_shapes,
    weight_of,
)

_KINDS = ("Linear", "Conv1D", "Embedding", *CONVOLUTIONS)


class HiraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (hira/config.py)."""

    r: Rank = 32
    rank_pattern: dict[str, Rank] | None = None

    @cached_property
    def _ranks(self) -> Patterns[int]:
        return Patterns("rank_pattern", self.rank_pattern or {})

    def rank(self, module: str) -> int:
        """The rank of a module by its path."""
        return self._ranks.value(module, self.r)

    def check(self) -> None:
        """Raise `BadInput` for a pattern key that is no usable regular expression."""
        self._ranks.check()


@dataclass(frozen=True)
class Modulated:
    """Multiplies values by one plus ``left (out, r) @ right (r, in)``."""

    left: Factor
    right: Factor
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.left, self.right)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        down, across = span_of(rows), span_of(cols)
        left = rows_of(self.left, down, load) if isinstance(down, slice) else load(self.left)[down]
        block += block * (left @ load(self.right)[:, across])


def _edits(context: Reading[HiraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Reading[HiraConfig], parts: Parts) -> list[Edit]:
    weight = weight_of(context, parts, _KINDS)
    if weight is None or not has_no_groups(context, parts, weight):
        return []
    embeds = weight.kind == "Embedding"
    wanted = ("embedding_A", "embedding_B") if embeds else ("A", "B")
    names = context.all_of(parts, *wanted, prefix="hira_")
    if names is None or not context.only(parts, frozenset(wanted)):
        return []
    a, b = names
    rank = context.config.rank(parts.module)
    if rank not in context.stored(a)[:1]:
        # PEFT 0.21 checks rank_pattern and then builds every layer with r.
        rank = context.config.r
    if not has_rank(context, a, 0, rank) or not has_rank(context, b, 1, rank):
        return []
    shapes = (rank, weight.inputs), (weight.outputs, rank)
    if weight.kind in CONVOLUTIONS:
        kernel = weight.shape[2:]
        shapes = (rank, *weight.shape[1:]), (weight.outputs, rank, *(1 for _ in kernel))
    elif embeds:
        # Its weight (tokens, dim) is the transpose of what the factors make.
        shapes = (rank, weight.shape[0]), (weight.shape[1], rank)
    if not fits(context, a, shapes[0], weight) or not fits(context, b, shapes[1], weight):
        return []
    left, right = matrix(context.adapter, b), matrix(context.adapter, a)
    if embeds:
        left, right = turned(right), turned(left)
    return [Edit(weight.parameter, (weight.step(Modulated(left, right)),))]


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    return linear_shapes(adapter, parts.tensors.get("B"), parts.tensors.get("A"))


HIRA = Tuner(
    "hira",
    HiraConfig,
    part_keys("hira", "A", "B", "embedding_A", "embedding_B"),
    _edits,
    shapes=_shapes,
)
