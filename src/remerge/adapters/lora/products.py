"""The two factors of a LoRA layer, as plain matrices whatever form they are stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from remerge.adapters.deltas import Factor, LowRank
from remerge.adapters.factors import made, matrix, turned
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import BlockDiagonal, Context
from remerge.adapters.lora.keys import TRAINING_ONLY
from remerge.adapters.vocabulary import counts_tokens

# torch ships no types for block_diag.
_TORCH: Any = torch


@dataclass(frozen=True)
class Product:
    """``scale * left @ right`` in the layer's own orientation: ``left (out, r)``,
    ``right (r, in)``."""

    left: Factor
    right: Factor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def low_rank(self, transposed: bool = False) -> LowRank:
        """The step on the weight ``(out, in)``, or on its transposed form ``(in, out)``."""
        if transposed:
            return LowRank(turned(self.right), turned(self.left), self.scale, turned=True)
        return LowRank(self.left, self.right, self.scale)


def linear_product(context: Context, parts: Parts, spoken: str) -> Product | None:
    """The product of a layer's ``lora_A`` and ``lora_B``; None, with misfits, where they do not
    belong together. ``spoken`` is the path under which patterns look for the layer."""
    allowed = {"A", "B", "B.bias", "magnitude_vector"}
    allowed |= {p for p in parts.tensors if p.partition(".")[0] in _training_only(context)}
    kasa = context.config.kasa_config is not None
    if not context.only(parts, frozenset(allowed | ({"diag"} if kasa else set[str]()))):
        return None
    pair = factor_pair(context, parts)
    if pair is None or any(not _is_matrix(context, name) for name in pair):
        return None
    left, right = _right_and_left(context, pair, spoken)
    if not check_rank(context, pair, spoken, left.shape[1], right.shape[0]):
        return None
    if kasa:
        diagonal = parts.tensors.get("diag")
        if diagonal is None:
            context.misfits.add(parts.any_tensor, "its lora_diag is missing", "unpaired")
            return None
        if context.stored(diagonal) != (right.shape[0],):
            context.misfits.add(
                diagonal,
                f"has shape {context.stored(diagonal)}, the rank is {right.shape[0]}",
                "rank",
            )
            return None
        left = _scaled(left, matrix(context.adapter, diagonal, (1, right.shape[0])))
    return Product(left, right, context.config.scale(spoken))


def factor_pair(
    context: Context, parts: Parts, first: str = "A", second: str = "B"
) -> tuple[str, str] | None:
    """The names of the two factors, or None with a misfit where one is missing."""
    found = context.all_of(parts, first, second, prefix="lora_")
    return None if found is None else (found[0], found[1])


def check_rank(
    context: Context, pair: tuple[str, str], spoken: str, inner_b: int, inner_a: int
) -> bool:
    """Whether both factors have the rank that the configuration gives the layer."""
    rank = context.config.rank(spoken)
    if inner_a == inner_b == rank:
        return True
    a, b = pair
    context.misfits.add(
        a,
        f"has shape {context.stored(a)} and {b.rpartition('.lora_')[2]} {context.stored(b)}, "
        f"but the configuration gives it rank {rank}",
        "rank",
    )
    return False


def check_shape(
    context: Context, tensor: str, parameter: str, wanted: tuple[int, ...] | None, found: str
) -> bool:
    """Whether the parameter exists and has the shape that the factors make.

    ``found`` says in words what the factors would change.
    """
    shape = context.shape(parameter)
    if shape is None:
        context.misfits.add(tensor, f"the model has no parameter {parameter}", "missing")
        return False
    if shape == wanted:
        return True
    same_width = wanted is not None and shape[1:] == wanted[1:]
    context.misfits.add(
        tensor,
        f"{found}, but {parameter} has shape {shape}",
        "vocabulary" if same_width and counts_tokens(parameter) else "shape",
    )
    return False


def _is_matrix(context: Context, name: str) -> bool:
    if len(context.stored(name)) == 2:
        return True
    context.misfits.add(name, f"has shape {context.stored(name)}, not two axes", "shape")
    return False


def _training_only(context: Context) -> frozenset[str]:
    config = context.config
    present = (config.velora_config is not None, config.monteclora_config is not None)
    return frozenset(part for part, used in zip(TRAINING_ONLY, present, strict=True) if used)


def _right_and_left(context: Context, pair: tuple[str, str], spoken: str) -> tuple[Factor, Factor]:
    right, left = matrix(context.adapter, pair[0]), matrix(context.adapter, pair[1])
    blocks = context.config.use_bdlora
    if blocks is None or blocks.nblocks == 1:
        return left, right
    if _named(blocks.target_modules_bd_a, spoken):
        right = _block_diagonal(right, blocks)
    elif _named(blocks.target_modules_bd_b, spoken):
        left = _block_diagonal(left, blocks)
    return left, right


def _named(patterns: list[str] | None, spoken: str) -> bool:
    return any(pattern in spoken for pattern in patterns or [])


def _block_diagonal(stacked: Factor, blocks: BlockDiagonal) -> Factor:
    """Blocks stacked over each other, put on a diagonal (BD-LoRA; PEFT lora/variants.py,
    BlockDiagonalLinear)."""
    count = blocks.nblocks

    def read() -> torch.Tensor:
        return _TORCH.block_diag(*torch.chunk(stacked.read(), count, dim=0))

    return made((stacked.shape[0], stacked.shape[1] * count), read)


def _scaled(left: Factor, diagonal: Factor) -> Factor:
    """``left @ diag(diagonal)``: KaSA's singular values (arXiv:2412.06071)."""
    return made(left.shape, lambda: left.read() * diagonal.read())
