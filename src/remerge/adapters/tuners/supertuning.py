"""Super-Tuning: trained numbers added at a few places of a weight (arXiv:2607.09287).

Supra adds a LoRA beside them (PEFT supertuning/layer.py). The places are stored as flat indices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, holds_integers
from remerge.adapters.tuners.places import Scattered
from remerge.adapters.tuners.weights import Weight, all_fit
from remerge.errors import BadInput, Unsupported

_KEY = re.compile(
    r"(?P<module>.+)\.supertuning_(?P<part>indices|values|lora_A|lora_B)"
    r"(?:\.(?!weight$)[^.]+)?(?P<weight>\.weight)?"
)


class SupertuningConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (supertuning/config.py)."""

    r: Rank | None = None
    lora_alpha: Number | None = None
    save_precomputed_indices: bool = True

    def check(self) -> None:
        if self.r is not None and self.lora_alpha is None:
            raise BadInput(
                "adapter_config.json: r is set without lora_alpha.",
                hint="Restore the adapter_config.json that the training run wrote.",
            )


Context = Reading[SupertuningConfig]


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    if found is None or found["part"].startswith("lora") != bool(found["weight"]):
        return None
    return found["module"], found["part"]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        if dense is not None:
            edits += _edit(context, parts, dense)
    return edits


def _edit(context: Context, parts: Parts, dense: Weight) -> list[Edit]:
    rank, scale = context.config.r, 0.0
    wanted = ("indices", "values") if rank is None else ("indices", "values", "lora_A", "lora_B")
    names = context.all_of(parts, *wanted, prefix="supertuning_")
    if names is None or not context.only(parts, frozenset(wanted)):
        return []
    indices, values = names[:2]
    count = context.stored(indices)
    if len(count) != 1 or not holds_integers(context, indices):
        context.misfits.add(indices, f"has shape {count}, but is a list of places", "shape")
        return []
    shapes = {values: count}
    if rank is not None:
        shapes |= {names[2]: (rank, dense.inputs), names[3]: (dense.outputs, rank)}
        scale = (context.config.lora_alpha or 0.0) / rank
    if not all_fit(context, dense, shapes):
        return []

    def places() -> torch.Tensor:
        found = context.adapter.read(indices).to(torch.int64)
        if int(found.min()) < 0 or int(found.max()) >= dense.outputs * dense.inputs:
            raise BadInput(
                f"The adapter's {indices} names a place outside of {dense.parameter}, of shape "
                f"{dense.view}.",
                hint="Give the base that the adapter was trained on.",
            )
        return found

    column = matrix(context.adapter, values, (count[0], 1))
    sparse = Scattered(column, places, dense.view)
    if rank is None:
        return [Edit(dense.parameter, (sparse,))]
    right, left = (matrix(context.adapter, name) for name in names[2:])
    return [Edit(dense.parameter, (sparse, dense.low_rank(left, right, scale)))]


def _check(config: SupertuningConfig, raw: Mapping[str, Any]) -> None:
    if not config.save_precomputed_indices:
        raise Unsupported(
            "The adapter was saved without the places of its numbers (save_precomputed_indices).",
            why="PEFT finds them again by sorting the base's weights, in which many are equal.",
            hint="Load it in PEFT and save it again with save_precomputed_indices set to true.",
        )


SUPERTUNING = Tuner(
    "supertuning",
    SupertuningConfig,
    _layer_key,
    _edits,
    check=_check,
    places=frozenset({"indices"}),
)
