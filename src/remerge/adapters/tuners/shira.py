"""SHiRA (arXiv:2406.13175; PEFT tuners/shira): a few values of the weight, each changed alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.places import Scattered
from remerge.adapters.tuners.weights import Weight, all_fit, weight_of
from remerge.errors import BadInput


class ShiraConfig(PeftConfig):
    """``r`` says how many values: as many as LoRA of that rank would have."""

    r: Rank = 32


def _edits(context: Reading[ShiraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Reading[ShiraConfig], parts: Parts) -> list[Edit]:
    names = context.all_of(parts, "weight", "indices", prefix="shira_")
    weight = weight_of(context, parts, ("Linear",))
    if names is None or weight is None:
        return []
    values, indices = names
    count = context.config.r * (weight.outputs + weight.inputs)
    if not all_fit(context, weight, {values: (count,), indices: (2, count)}):
        return []
    column = matrix(context.adapter, values, (count, 1))
    places = partial(_places, context, indices, weight)
    return [Edit(weight.parameter, (Scattered(column, places, weight.view),))]


def _places(context: Reading[ShiraConfig], indices: str, weight: Weight) -> torch.Tensor:
    """Flat places in the weight, int64, of which ``indices (2, n)`` are the rows and columns.

    PEFT on Windows stores them as floats, and cuts them to integers on load.
    """
    places = context.adapter.read(indices).to(torch.int64)
    sizes = torch.tensor(weight.view).unsqueeze(1)
    if bool(((places < 0) | (places >= sizes)).any()):
        raise BadInput(
            f"Adapter tensor {indices} names places outside of {weight.parameter}, which has "
            f"shape {weight.shape}.",
            why="The file is damaged, or belongs to another base.",
            hint="Give the base that the adapter was trained on.",
        )
    return places[0] * weight.view[1] + places[1]


SHIRA = Tuner(
    "shira",
    ShiraConfig,
    part_keys("shira", "weight", "indices"),
    _edits,
    places=frozenset({"indices"}),
)
