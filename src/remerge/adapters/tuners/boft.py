"""BOFT (arXiv:2311.06243; PEFT tuners/boft): butterfly products of block rotations, then a scale
of every output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import Factor
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.rotation import Rotated, Rotation, cayley, stacked
from remerge.adapters.tuners.weights import Weight, fits, has_no_groups, weight_of

_KINDS = ("Linear", "Conv2d")


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Context, parts: Parts) -> list[Edit]:
    names = context.all_of(parts, "R", "s", prefix="boft_")
    weight = weight_of(context, parts, _KINDS)
    if names is None or weight is None or not has_no_groups(context, parts, weight):
        return []
    rotations = _rotations(context, names[0], weight)
    sizes = (weight.outputs, 1) if weight.kind == "Linear" else (1, weight.outputs)
    if not fits(context, names[1], sizes, weight) or rotations is None:
        return []
    scale = matrix(context.adapter, names[1], (weight.outputs, 1))
    return [Edit(weight.parameter, (Rotated(rotations, scale),))]


def _rotations(context: Context, name: str, weight: Weight) -> tuple[Rotation, ...] | None:
    """The factors ``(factors, blocks, size, size)``, applied first to last."""
    found = context.stored(name)
    if len(found) == 4 and found[2] == found[3] and found[1] * found[2] == weight.inputs:
        factors, count, size = found[:3]
        if factors == 1 or (factors < 64 and count % 2 ** (factors - 1) == 0 and size % 2 == 0):
            stored = matrix(context.adapter, name)
            orders = [_order(weight.inputs, count >> i, size) for i in range(factors)]
            return tuple(
                Rotation(_blocks(stored, i, size), order if factors > 1 else None)
                for i, order in enumerate(orders)
            )
    problem = (
        f"has shape {found}, which holds no butterfly of the {weight.inputs} inputs of "
        f"{weight.parameter}, of shape {weight.shape}"
    )
    context.misfits.add(name, problem, "shape")
    return None


def _order(inputs: int, parts: int, size: int) -> tuple[int, ...]:
    """Where a factor's diagonal has each input: within each of ``parts`` the half-blocks at even
    places come before those at odd ones (PEFT, block_butterfly_perm)."""
    if size % 2:
        return ()
    halves = np.arange(inputs // parts).reshape(-1, size // 2)
    order = np.concatenate([halves[0::2], halves[1::2]]).reshape(-1)
    starts = np.arange(parts) * (inputs // parts)
    return tuple(int(place) for place in (starts[:, None] + order).reshape(-1))


def _blocks(stored: Factor, index: int, size: int) -> Factor:
    """The rotations ``(blocks * size, size)`` of one factor."""
    count = stored.shape[1] // size**2

    def some(taken: slice) -> torch.Tensor:
        values = stored.read()[index].reshape(-1, size, size)[taken]
        return cayley((values - values.transpose(1, 2)) / 2)

    return made((count * size, size), stacked(count, size, some))


BOFT = Tuner("boft", PeftConfig, part_keys("boft", "R", "s"), _edits)
