"""MiSS (arXiv:2409.15371; PEFT tuners/miss): one block of values added along all of a row, or,
in the variant "bat", blocks of the row multiplied by it as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.rotation import in_order
from remerge.adapters.tuners.weights import Weight, fits, has_rank, weight_of


class MissConfig(PeftConfig):
    """``init_weights`` names the variant too: "bat", "mini" or none; ``mini_r`` is used by
    "mini" alone."""

    r: Rank = 64
    mini_r: Rank = 1
    init_weights: bool | str = True


Context = Reading[MissConfig]


@dataclass(frozen=True)
class Repeated:
    """Adds ``values (r, n)`` to ``(out, in)`` values: ``values[i % r, o % n]`` at ``[o, i]``."""

    values: Factor
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        values = load(self.values)
        down, across = (torch.as_tensor(np.asarray(index)) for index in (rows, cols))
        block += values[:, down % values.shape[1]][across % values.shape[0]].T


@dataclass(frozen=True)
class BlockAffine:
    """``W + W @ B + B`` for blocks ``(r, r)`` of the weight, of which those in the same rows share
    one ``B``. ``blocks`` is ``(out, r)``; ``band`` is r."""

    blocks: Factor
    band: int
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.blocks,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        place, size = in_order(cols), self.band
        added = load(self.blocks)[span_of(rows)].reshape(-1, 1, size, size)
        parts = block[:, place].reshape(added.shape[0], size, -1, size).transpose(1, 2)
        changed = (parts + parts @ added + added).transpose(1, 2)
        block[:, place] = changed.reshape(block.shape)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    found: list[Edit] = []
    for parts in layers:
        weight = weight_of(context, parts, ("Linear",))
        step = None if weight is None else _step(context, parts.any_tensor, weight)
        if weight is not None and step is not None:
            found.append(Edit(weight.parameter, (step,)))
    return found


def _step(context: Context, name: str, weight: Weight) -> Repeated | BlockAffine | None:
    config, rank = context.config, context.config.r
    if config.init_weights == "bat":
        if not has_rank(context, name, -1, rank) or not _divides(context, name, weight, rank):
            return None
        if not fits(context, name, (weight.outputs // rank, rank, rank), weight):
            return None
        return BlockAffine(matrix(context.adapter, name, (weight.outputs, rank)), rank)
    repeats = config.mini_r if config.init_weights == "mini" else weight.outputs
    if not has_rank(context, name, 0, rank) or not fits(context, name, (rank, repeats), weight):
        return None
    if weight.outputs % repeats:
        problem = f"mini_r {repeats} does not divide the {weight.outputs} outputs of its layer"
        context.misfits.add(name, problem, "shape")
        return None
    return Repeated(matrix(context.adapter, name))


def _divides(context: Context, name: str, weight: Weight, rank: int) -> bool:
    if weight.outputs % rank == 0 and weight.inputs % rank == 0:
        return True
    problem = f"rank {rank} does not divide {weight.parameter} of shape {weight.shape} into blocks"
    context.misfits.add(name, problem, "shape")
    return False


# Bone was its name before PEFT 0.18, which converts by renaming (PEFT convert-bone-to-miss.py).
MISS = Tuner("miss", MissConfig, part_keys("(?:miss|bone)", "block"), _edits)
