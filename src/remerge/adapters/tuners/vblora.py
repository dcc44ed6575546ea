"""VB-LoRA: both factors put together from pieces of one bank of vectors (arXiv:2405.15179).

A piece of a factor is the mean of its top-k bank vectors, weighted by the softmax of their logits
(PEFT vblora/layer.py). With ``save_only_topk_weights`` the file holds indices and all but the last
weight instead of logits (vblora/model.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, holds_integers
from remerge.adapters.tuners.shared import projection, split_shared
from remerge.adapters.tuners.weights import Weight, fits
from remerge.errors import BadInput

_INDICES, _WEIGHTS = "_topk_indices", "_topk_weights"
_KEY = re.compile(
    r"(?P<module>.+)\.vblora_(?P<part>logits_A|logits_B|vector_bank)"
    r"(?:\.[^.]+?)?(?P<form>_topk_indices|_topk_weights)?"
)

Count = Annotated[int, Field(gt=0, le=2**31)]


class VBLoRAConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (vblora/config.py)."""

    r: Rank = 4
    num_vectors: Count = 256
    vector_length: Count = 256
    topk: Count = 2
    save_only_topk_weights: bool = False

    def check(self) -> None:
        if self.topk > self.num_vectors:
            raise BadInput(
                f"adapter_config.json: topk is {self.topk}, but num_vectors {self.num_vectors}.",
                hint="Restore the adapter_config.json that the training run wrote.",
            )


Context = Reading[VBLoRAConfig]


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    if found is None:
        return None
    module, part = found["module"], found["part"] + (found["form"] or "")
    return ("" if part == "vector_bank" and module == "base_model" else module), part


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    shared, own = split_shared(layers)
    config = context.config
    size = (config.num_vectors, config.vector_length)
    bank = projection(context, shared, "vector_bank", size)
    edits: list[Edit] = []
    for parts in own:
        dense = dense_layer(context, parts)
        if dense is not None and bank is not None:
            edits += _edit(context, parts, dense, bank)
    return edits


def _edit(
    context: Context, parts: Parts, dense: Weight, bank: Callable[[], torch.Tensor]
) -> list[Edit]:
    rank, length = context.config.r, context.config.vector_length
    if dense.inputs % length or dense.outputs % length:
        context.misfits.add(
            parts.any_tensor,
            f"has vectors of {length}, which do not divide the {dense.outputs} x {dense.inputs} "
            f"of {parts.module}",
            "shape",
        )
        return []
    pieces_a = _pieces(context, parts, dense, "logits_A", (rank, dense.inputs // length))
    pieces_b = _pieces(context, parts, dense, "logits_B", (dense.outputs // length, rank))
    if pieces_a is None or pieces_b is None:
        return []

    def vectors(pieces: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        weights, indices = pieces()
        return torch.einsum("abk,abkv->abv", weights, bank().to(torch.float64)[indices])

    right = made((rank, dense.inputs), lambda: vectors(pieces_a))
    left = made((dense.outputs, rank), lambda: vectors(pieces_b).transpose(1, 2))
    return [Edit(dense.parameter, (dense.low_rank(left, right, 1.0),))]


def _pieces(
    context: Context, parts: Parts, dense: Weight, part: str, shape: tuple[int, int]
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]] | None:
    """Reads weights and indices ``(*shape, topk)`` of a factor's pieces."""
    count, topk, read = context.config.num_vectors, context.config.topk, context.adapter.read
    if not context.config.save_only_topk_weights:
        names = context.all_of(parts, part, prefix="vblora_")
        if names is None or not fits(context, names[0], (*shape, count), dense):
            return None
        logits = names[0]

        def from_logits() -> tuple[torch.Tensor, torch.Tensor]:
            top = read(logits).to(torch.float64).topk(topk, dim=-1)
            return top.values.softmax(-1), top.indices

        return from_logits
    names = context.all_of(parts, part + _INDICES, part + _WEIGHTS, prefix="vblora_")
    if names is None:
        return None
    indices, weights = names
    if context.stored(indices) != (*shape, topk):
        found, wanted = context.stored(indices), (*shape, topk)
        context.misfits.add(
            indices, f"has shape {found}, but {dense.module} needs {wanted}", "shape"
        )
        return None
    if not holds_integers(context, indices):
        return None
    if not fits(context, weights, (*shape, topk - 1), dense):
        return None

    def from_top() -> tuple[torch.Tensor, torch.Tensor]:
        found = read(indices).to(torch.int64)
        if int(found.min()) < 0 or int(found.max()) >= count:
            raise BadInput(
                f"The adapter's {indices} names a vector outside of the bank of {count}.",
                hint="Save the adapter again from the training run.",
            )
        kept = read(weights).to(torch.float64)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], dim=-1), found

    return from_top


# With topk 1 the weights that are saved are none: all but the last.
VBLORA = Tuner(
    "vblora",
    VBLoRAConfig,
    _layer_key,
    _edits,
    keeps_nothing=True,
    places=frozenset({"logits_A" + _INDICES, "logits_B" + _INDICES}),
)
