"""AdaLoRA (arXiv:2303.10512; PEFT tuners/adalora): ``W + s * B @ (E * A)``, ranks of their own.

The scale is ``lora_alpha / (init_r + 1e-5)``: PEFT divides by the rank before pruning, and never
by zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from remerge.adapters.config import Number, PeftConfig
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.weights import (
    fits,
    has_no_groups,
    has_rank,
    linear_shapes,
    weight_of,
)

_KINDS = ("Linear", "Conv1D", "Conv2d")
_ENDINGS = (".lora_E", ".lora_E.default")


class AdaLoraConfig(PeftConfig):
    """``rank_pattern`` holds, by the name of each ``lora_E``, which of its ``init_r`` values were
    kept (PEFT adalora/layer.py, RankAllocator)."""

    init_r: Annotated[int, Field(ge=0, le=2**20)] = 12
    lora_alpha: Number = 8
    rank_pattern: Mapping[str, list[bool]] | None = None

    def rank(self, module: str) -> int:
        """How many ranks the allocator left to a module."""
        for ending in _ENDINGS:
            kept = (self.rank_pattern or {}).get(module + ending)
            if kept is not None:
                return sum(kept)
        return self.init_r

    def scale(self, rank: int) -> float:
        """An alpha of 0 or less stands for the rank."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else float(rank)
        return alpha / (self.init_r + 1e-5)


def _edits(context: Reading[AdaLoraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Reading[AdaLoraConfig], parts: Parts) -> list[Edit]:
    names = context.all_of(parts, "A", "B", "E", prefix="lora_")
    weight = weight_of(context, parts, _KINDS)
    if names is None or weight is None or not has_no_groups(context, parts, weight):
        return []
    a, b, e = names
    rank = context.config.rank(parts.module)
    if not all(has_rank(context, n, axis, rank) for n, axis in ((a, 0), (e, 0), (b, -1))):
        return []
    wanted = ((a, (rank, weight.inputs)), (b, (weight.outputs, rank)), (e, (rank, 1)))
    if not all(fits(context, name, shape, weight) for name, shape in wanted) or not rank:
        return []
    right, values = matrix(context.adapter, a), matrix(context.adapter, e)
    scaled = made(right.shape, lambda: right.read() * values.read())
    step = weight.low_rank(matrix(context.adapter, b), scaled, context.config.scale(rank))
    return [Edit(weight.parameter, (step,))]


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    return linear_shapes(adapter, parts.tensors.get("B"), parts.tensors.get("A"))


ADALORA = Tuner(
    "adalora",
    AdaLoraConfig,
    part_keys("lora", "A", "B", "E"),
    _edits,
    shapes=_shapes,
    keeps_nothing=True,
)
