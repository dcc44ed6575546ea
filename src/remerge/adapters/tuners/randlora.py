"""RandLoRA: a full-rank sum of random low-rank products, weighted by what was trained.

``W + s * B A'`` (arXiv:2502.00987; PEFT randlora/layer.py), where ``B (max, bases * r)`` is random
and shared, ``A' (r * bases, min)`` the shared ``A (r, 1, min)`` scaled by ``lambda (r, bases)`` and
``gamma (bases, min)``; the product is turned where the layer has fewer outputs than inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys
from remerge.adapters.tuners.places import Seed
from remerge.adapters.tuners.shared import check_drawn, held, largest, projection, split_shared
from remerge.adapters.tuners.weights import Weight, fits

# How many of the terms are summed at a time: their factors never exist whole.
_TERMS = 512
_PAIR = frozenset({"A", "B"})


class RandLoraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (randlora/config.py)."""

    r: Rank = 32
    randlora_alpha: Number = 640
    projection_prng_key: Seed = 0
    save_projection: bool = True
    sparse: bool = False
    very_sparse: bool = False


Context = Reading[RandLoraConfig]


@dataclass(frozen=True)
class RandomSum:
    """``block += scale * B[tall] @ A'[:, wide]``, turned with ``flipped``.

    ``a (r, >= min)`` and ``b (>= max, >= bases * r)`` are shared; ``weights (r, bases)`` is lambda,
    ``gamma (bases, min)``.
    """

    a: Factor
    b: Factor
    weights: Factor
    gamma: Factor
    scale: float
    flipped: bool
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.a, self.b, self.weights, self.gamma)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        tall, wide = (cols, rows) if self.flipped else (rows, cols)
        target = block.T if self.flipped else block
        a, gamma = (load(factor)[:, span_of(wide)] for factor in (self.a, self.gamma))
        weights, b = load(self.weights), load(self.b)[span_of(tall)]
        rank, bases = weights.shape
        for first in range(0, rank * bases, _TERMS):
            # PEFT flattens A' with the bases running faster, B with the rank: so they are paired.
            term = torch.arange(first, min(first + _TERMS, rank * bases))
            i, base = term // bases, term % bases
            scaled = weights[i, base].unsqueeze(1) * a[i] * gamma[base]
            target.addmm_(b[:, first : first + term.numel()], scaled, alpha=self.scale)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    shared, own = split_shared(layers)
    for parts in own:
        # PEFT stores the shared pair again under every layer.
        for part in _PAIR & parts.tensors.keys():
            copy = parts.tensors[part]
            first = shared.setdefault(part, copy)
            if context.stored(copy) != context.stored(first):
                problem = f"has shape {context.stored(copy)}, but is a copy of {first}"
                context.misfits.add(copy, f"{problem} of shape {context.stored(first)}", "shape")
    found = [(parts, dense_layer(context, parts)) for parts in own]
    layers_found = [(parts, dense) for parts, dense in found if dense is not None]
    pair = _pair(context, shared, [dense for _, dense in layers_found])
    if pair is None:
        return []
    return [edit for parts, dense in layers_found for edit in _edit(context, parts, dense, *pair)]


def _edit(context: Context, parts: Parts, dense: Weight, a: Factor, b: Factor) -> list[Edit]:
    names = context.all_of(parts, "lambda", "gamma", prefix="randlora_")
    if names is None:
        return []
    rank, least = context.config.r, min(dense.outputs, dense.inputs)
    bases = math.ceil(least / rank)
    fit = fits(context, names[0], (rank, bases), dense, "rank")
    if not fits(context, names[1], (bases, least), dense) or not fit:
        return []
    weights, gamma = (matrix(context.adapter, name) for name in names)
    # A' runs along the inputs where they are no more than the outputs.
    flipped = (least != dense.inputs) != dense.transposed
    scale = context.config.randlora_alpha / rank
    return [Edit(dense.parameter, (RandomSum(a, b, weights, gamma, scale, flipped),))]


def _pair(
    context: Context, shared: Mapping[str, str], layers: Sequence[Weight]
) -> tuple[Factor, Factor] | None:
    """The shared ``A (r, min)`` and ``B (max, bases * r)`` of the largest layer."""
    if not layers:
        return None
    config, (least, most) = context.config, sorted(largest(layers))
    bases = math.ceil(least / config.r)
    shape_a, shape_b = (config.r, 1, least), (most, bases, config.r)
    if shared or config.save_projection:
        a = projection(context, shared, "A", shape_a)
        b = projection(context, shared, "B", shape_b)
        if a is None or b is None:
            return None
        return made((config.r, least), a), made((most, bases * config.r), b)
    check_drawn("RandLoRA", math.prod(shape_a) + math.prod(shape_b))
    keep = held(context, layers[0].parameter)

    @cache
    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        pair = _sparse if config.sparse or config.very_sparse else _uniform
        a, b = pair(config, shape_a, shape_b)
        return keep(a / a.std()), keep(b / b.std())

    return (
        made((config.r, least), lambda: drawn()[0]),
        made((most, bases * config.r), lambda: drawn()[1]),
    )


def _uniform(
    config: RandLoraConfig, shape_a: tuple[int, int, int], shape_b: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As PEFT draws them, in bfloat16 (randlora/model.py, _init_randlora_A_randlora_B)."""
    generator = torch.Generator().manual_seed(config.projection_prng_key)

    def kaiming(*shape: int) -> torch.Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16)
        return torch.nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)

    most, bases, rank = shape_b
    a = kaiming(*shape_a)
    return a, torch.cat([kaiming(most, 1, rank) for _ in range(bases)], dim=1)


def _sparse(
    config: RandLoraConfig, shape_a: tuple[int, int, int], shape_b: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of -1, 0 and 1 (randlora/model.py, _init_randlora_A_randlora_B_sparse)."""
    generator = torch.Generator().manual_seed(config.projection_prng_key)
    sparsity = math.sqrt(shape_a[2]) if config.very_sparse else 3

    def thirds(shape: tuple[int, int, int]) -> torch.Tensor:
        uniform = torch.rand(shape, generator=generator)
        values = torch.zeros(shape)
        values[uniform < 1 / (2 * sparsity)] = -1
        values[uniform > 1 - 1 / (2 * sparsity)] = 1
        return values

    return thirds(shape_a), thirds(shape_b)


RANDLORA = Tuner(
    "randlora",
    RandLoraConfig,
    part_keys("randlora", "lambda", "gamma", "A", "B", shared=()),
    _edits,
)
