"""GraLoRA (arXiv:2505.20355; PEFT tuners/gralora): a product of low rank for every block of a grid,
with a plain one over all of them if asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from remerge.adapters.blocks import Step
from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.weights import Weight, fits, has_rank, weight_of
from remerge.errors import BadInput

_KEY = re.compile(
    r"(?P<module>.+)\.gralora_(?P<part>[AB](?:_general)?)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)


class GraloraConfig(PeftConfig):
    """``gralora_k``: blocks along each side; ``hybrid_r``: the rank of the plain product."""

    r: Rank = 32
    hybrid_r: Annotated[int, Field(ge=0, le=2**20)] = 0
    alpha: Number = 64
    gralora_k: Rank = 2

    def check(self) -> None:
        """Raise `BadInput` where the rank cannot be split among the blocks."""
        if self.r % self.gralora_k:
            raise BadInput(
                f"adapter_config.json: gralora_k {self.gralora_k} does not divide r {self.r}.",
                hint="Restore the adapter_config.json that the training run wrote.",
            )


Context = Reading[GraloraConfig]


@dataclass(frozen=True)
class Granular:
    """Adds to the block of inputs ``n`` and outputs ``j`` of ``(out, in)`` values ``scale`` times
    ``B[j][part n of r].T @ A[n][:, part j of r].T``.

    ``right`` is A, ``(blocks * in/blocks, r)``; ``left`` is B, ``(blocks * r, out/blocks)``.
    """

    left: Factor
    right: Factor
    blocks: int
    scale: float
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
        right = load(self.right)
        rank, share = right.shape[1], right.shape[1] // self.blocks
        left = load(self.left).reshape(self.blocks, rank, -1)
        down, across = np.asarray(rows), np.asarray(cols)
        tall, wide = left.shape[2], right.shape[0] // self.blocks
        for j in np.unique(down // tall).tolist():
            at_row = torch.as_tensor(np.nonzero(down // tall == j)[0])
            outer = left[j][:, torch.as_tensor(down)[at_row] % tall].T
            for n in np.unique(across // wide).tolist():
                at_col = torch.as_tensor(np.nonzero(across // wide == n)[0])
                inner = right[torch.as_tensor(across)[at_col], j * share : (j + 1) * share]
                change = outer[:, n * share : (n + 1) * share] @ inner.T
                block[at_row.unsqueeze(1), at_col] += self.scale * change


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    return None if found is None else (found["module"], found["part"])


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Context, parts: Parts) -> list[Edit]:
    config = context.config
    plain = ("A_general", "B_general") if config.hybrid_r else ()
    names = context.all_of(parts, "A", "B", *plain, prefix="gralora_")
    weight = weight_of(context, parts, ("Linear", "Conv1D"))
    if names is None or weight is None or not context.only(parts, frozenset(("A", "B", *plain))):
        return []
    a, b = names[:2]
    blocks, rank, scale = config.gralora_k, config.r, config.alpha / (config.r + config.hybrid_r)
    if weight.outputs % blocks or weight.inputs % blocks:
        problem = f"{blocks} blocks do not divide {weight.parameter} of shape {weight.shape}"
        context.misfits.add(a, problem, "shape")
        return []
    if not has_rank(context, a, -1, rank) or not has_rank(context, b, 1, rank):
        return []
    tall, wide = weight.outputs // blocks, weight.inputs // blocks
    if not fits(context, a, (blocks, wide, rank), weight):
        return []
    if not fits(context, b, (blocks, rank, tall), weight):
        return []
    right = matrix(context.adapter, a, (weight.inputs, rank))
    left = matrix(context.adapter, b, (blocks * rank, tall))
    steps: list[Step] = [weight.step(Granular(left, right, blocks, scale))]
    if plain:
        product = _plain(context, names[2:], weight, scale)
        if product is None:
            return []
        steps.append(product)
    return [Edit(weight.parameter, tuple(steps))]


def _plain(context: Context, names: Sequence[str], weight: Weight, scale: float) -> Step | None:
    a, b = names
    rank = context.config.hybrid_r
    if not has_rank(context, a, 0, rank) or not has_rank(context, b, -1, rank):
        return None
    if not fits(context, a, (rank, weight.inputs), weight):
        return None
    if not fits(context, b, (weight.outputs, rank), weight):
        return None
    return weight.low_rank(matrix(context.adapter, b), matrix(context.adapter, a), scale)


GRALORA = Tuner("gralora", GraloraConfig, _layer_key, _edits)
