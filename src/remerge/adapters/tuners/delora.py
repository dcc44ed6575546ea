"""DeLoRA: a low-rank change whose every term has a trained bound (arXiv:2503.18225).

``W + B diag(lambda / (r |A_i| |B^i|)) A diag(w)``, where w holds the base's column norms as
training found and stored them (PEFT delora/layer.py, _compute_delta).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.patterns import Patterns
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys, stored_shape
from remerge.adapters.tuners.weights import all_fit

# Norms below this count as this.
_LEAST = 1e-4


class DeloraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (delora/config.py)."""

    r: Rank = 8
    rank_pattern: dict[str, Rank] | None = None

    @cached_property
    def ranks(self) -> Patterns[int]:
        """``rank_pattern`` by module."""
        return Patterns("rank_pattern", self.rank_pattern or {})

    def check(self) -> None:
        self.ranks.check()


Context = Reading[DeloraConfig]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        edits += _edit(context, parts)
    return edits


def _edit(context: Context, parts: Parts) -> list[Edit]:
    dense = dense_layer(context, parts, conv1d=False)
    names = context.all_of(parts, "A", "B", "lambda", "w_norm", prefix="delora_")
    if dense is None or names is None:
        return []
    rank = context.config.ranks.value(parts.module, context.config.r)
    wanted = (rank, dense.inputs), (dense.outputs, rank), (1,), (dense.inputs,)
    if not all_fit(context, dense, dict(zip(names, wanted, strict=True))):
        return []

    def right() -> torch.Tensor:
        a, b, bound, norms = (context.adapter.read(name).to(torch.float64) for name in names)
        outer, inner = b.square().sum(0).sqrt(), a.square().sum(1).sqrt()
        bounds = bound / rank / (inner.clamp(min=_LEAST) * outer.clamp(min=_LEAST))
        return bounds.unsqueeze(1) * a * norms

    left = matrix(context.adapter, names[1])
    step = dense.low_rank(left, made((rank, dense.inputs), right), 1.0)
    return [Edit(dense.parameter, (step,))]


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    return FactorShapes(stored_shape(adapter, parts, "A"), stored_shape(adapter, parts, "B"))


DELORA = Tuner(
    "delora",
    DeloraConfig,
    part_keys("delora", "A", "B", "lambda", "w_norm"),
    _edits,
    shapes=_shapes,
)
