"""VeRA: one pair of random matrices for all layers, scaled by two vectors of each layer's own.

``W + diag(b) B[:out] diag(d) A[:, :in]`` (arXiv:2310.11454; PEFT vera/layer.py). The shared pair is
as large as the largest layer; it is stored, or drawn again from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import Factor
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys
from remerge.adapters.tuners.places import Seed
from remerge.adapters.tuners.shared import check_drawn, held, largest, projection, split_shared
from remerge.adapters.tuners.weights import Weight, fits


class VeraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (vera/config.py, pvera/config.py)."""

    r: Rank = 256
    projection_prng_key: Seed = 0
    save_projection: bool = True


@dataclass(frozen=True)
class _Pair:
    """The shared matrices: ``A (r, in)`` and ``B (out, r)`` of the largest layer."""

    a: Callable[[], torch.Tensor]
    b: Callable[[], torch.Tensor]


def vera_edits(context: Reading[VeraConfig], layers: Sequence[Parts], halves: int) -> list[Edit]:
    """Edits of all layers. Of ``halves * r`` rows of A and values of d the first r are used."""
    shared, own = split_shared(layers)
    denses = [(parts, dense_layer(context, parts)) for parts in own]
    found = [(parts, dense) for parts, dense in denses if dense is not None]
    pair = _pair(context, shared, [dense for _, dense in found], halves)
    if pair is None:
        return []
    return [edit for parts, dense in found for edit in _edit(context, parts, dense, pair, halves)]


def _edit(
    context: Reading[VeraConfig], parts: Parts, dense: Weight, pair: _Pair, halves: int
) -> list[Edit]:
    names = context.all_of(parts, "lambda_b", "lambda_d")
    if names is None:
        return []
    by_output, by_rank = names
    rank = context.config.r
    fit = fits(context, by_output, (dense.outputs,), dense)
    if not fits(context, by_rank, (halves * rank,), dense, "rank") or not fit:
        return []
    left = _scaled(context, (dense.outputs, rank), by_output, pair.b)
    right = _scaled(context, (rank, dense.inputs), by_rank, pair.a)
    return [Edit(dense.parameter, (dense.low_rank(left, right, 1.0),))]


def _scaled(
    context: Reading[VeraConfig],
    shape: tuple[int, int],
    name: str,
    matrix: Callable[[], torch.Tensor],
) -> Factor:
    """``diag(vector) @ matrix`` for the first rows and columns of both."""
    rows, cols = shape

    def read() -> torch.Tensor:
        vector = context.adapter.read(name).to(torch.float64)[:rows]
        return vector.unsqueeze(1) * matrix()[:rows, :cols].to(torch.float64)

    return made(shape, read)


def _pair(
    context: Reading[VeraConfig], shared: dict[str, str], layers: Sequence[Weight], halves: int
) -> _Pair | None:
    if not layers:
        return None
    outputs, inputs = largest(layers)
    rank, config = context.config.r, context.config
    if not shared and not config.save_projection:
        check_drawn("VeRA", rank * (halves * inputs + outputs))
        drawn, keep = (
            cache(lambda: _drawn(config, outputs, inputs, halves)),
            held(context, layers[0].parameter),
        )
        return _Pair(lambda: keep(drawn()[0]), lambda: keep(drawn()[1]))
    a = projection(context, shared, "A", (halves * rank, inputs))
    b = projection(context, shared, "B", (outputs, rank))
    return None if a is None or b is None else _Pair(a, b)


def _drawn(
    config: VeraConfig, outputs: int, inputs: int, halves: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A, then B, as PEFT draws them: Kaiming uniform in float32 on the CPU (vera/model.py,
    _kaiming_init; pvera/model.py, _init_pvera_A_pvera_B)."""
    generator = torch.Generator().manual_seed(config.projection_prng_key)
    shapes = (halves * config.r, inputs), (outputs, config.r)
    a, b = (
        torch.empty(shape).uniform_(
            -math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1])),
            math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1])),
            generator=generator,
        )
        for shape in shapes
    )
    return a, b


def _edits(context: Reading[VeraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return vera_edits(context, layers, halves=1)


VERA = Tuner(
    "vera",
    VeraConfig,
    part_keys("vera", "lambda_b", "lambda_d", shared=("A", "B")),
    _edits,
)
