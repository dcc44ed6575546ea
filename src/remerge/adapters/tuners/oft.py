"""OFT (arXiv:2306.07280; PEFT tuners/oft): the inputs of a layer turned block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from remerge.adapters.config import Number, PeftConfig
from remerge.adapters.deltas import Factor
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.rotation import Rotated, Rotation, cayley, stacked
from remerge.adapters.tuners.weights import Weight, has_no_groups, weight_of
from remerge.errors import Unsupported

_KINDS = ("Linear", "Conv2d", "Embedding")
_KEY = re.compile(r"(?P<module>.+)\.oft_(?P<part>R|embedding_R|r|s)(?:\.[^.]+)??(?:\.weight)?")
# Since this release PEFT sums one term of the Neumann series differently (oft/config.py).
_NEUMANN_SINCE = (0, 18)


class OftConfig(PeftConfig):
    """The fields that decide a merge; the size of a block is told by the stored tensors."""

    coft: bool = False
    eps: Number = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=0, le=1000)] = 5


Context = Reading[OftConfig]


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    return None if found is None else (found["module"], found["part"])


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Context, parts: Parts) -> list[Edit]:
    weight = weight_of(context, parts, _KINDS)
    if weight is None or not has_no_groups(context, parts, weight):
        return []
    embeds = weight.kind == "Embedding"
    part = "embedding_R" if embeds else "R"
    names = context.all_of(parts, part, prefix="oft_")
    if names is None or not context.only(parts, frozenset({part})):
        return []
    size = _block_size(context, names[0], weight)
    if size is None:
        return []
    # A layer's inputs are turned, so its weight by the transpose; an embedding's rows themselves.
    blocks = _blocks(matrix(context.adapter, names[0]), size, context.config, embeds)
    return [Edit(weight.parameter, (Rotated((Rotation(blocks),)),))]


def _block_size(context: Context, name: str, weight: Weight) -> int | None:
    """The size of a block, of which ``(blocks, size * (size - 1) / 2)`` values are stored."""
    found = context.stored(name)
    if len(found) == 2:
        size = (1 + math.isqrt(1 + 8 * found[1])) // 2
        blocks = 1 if context.config.block_share else weight.inputs // size
        if size * (size - 1) == 2 * found[1] and weight.inputs % size == 0 and found[0] == blocks:
            return size
    shared = "shared" if context.config.block_share else "of its own"
    problem = (
        f"has shape {found}, which holds no rotation, blocks {shared}, for {weight.parameter} of "
        f"shape {weight.shape}"
    )
    context.misfits.add(name, problem, "shape")
    return None


def _blocks(stored: Factor, size: int, config: OftConfig, transposed: bool) -> Factor:
    """The rotations ``(blocks * size, size)`` of the stored upper triangles."""

    count = stored.shape[0]
    rows, cols = torch.triu_indices(size, size, 1)

    def some(taken: slice) -> torch.Tensor:
        upper = stored.read()[taken]
        skew = torch.zeros(upper.shape[0], size, size, dtype=upper.dtype)
        skew[:, rows, cols] = upper
        skew = skew - skew.transpose(1, 2)
        if config.coft:
            skew = _constrained(skew, config.eps / math.sqrt(count))
        turns = _series(skew, config) if config.use_cayley_neumann else cayley(skew)
        return turns.transpose(1, 2) if transposed else turns

    return made((count * size, size), stacked(count, size, some))


def _constrained(skew: torch.Tensor, most: float) -> torch.Tensor:
    """COFT: no block farther from zero than this, eps / sqrt(blocks) (PEFT, _project_batch)."""
    norms = skew.square().sum((1, 2), keepdim=True).sqrt()
    return torch.where(norms <= most, skew, most * skew / norms)


def _series(skew: torch.Tensor, config: OftConfig) -> torch.Tensor:
    """Cayley's formula by its Neumann series, ``I + 2 S + 2 S^2 + ... + S^n`` (arXiv:2506.19847;
    PEFT, _cayley_batch): the last term counts once."""
    terms = config.num_cayley_neumann_terms
    total = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew).clone()
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        power = skew @ skew
        total += 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def _check(config: OftConfig, raw: Mapping[str, Any]) -> None:
    if "oft_block_size" not in raw:
        raise Unsupported(
            "The adapter is an OFT adapter of the form before PEFT 0.15.",
            why="Its oft_r means another rotation; PEFT no longer reads it either.",
            hint="Merge it with PEFT 0.13, or train it again.",
        )


def _notes(context: Context, keys: Keys) -> list[str]:
    found: list[str] = []
    version = re.match(r"(\d+)\.(\d+)", str(context.adapter.config.get("peft_version")))
    saved = (0, 0) if version is None else (int(version[1]), int(version[2]))
    if context.config.use_cayley_neumann and saved < _NEUMANN_SINCE:
        found.append(
            "The adapter was saved by a PEFT before 0.18, whose Cayley-Neumann series differs in "
            "its last term. The merge follows today's PEFT, which warns of the same."
        )
    wide = [parts.module for parts in keys.layers if _has_kernel(context, parts)]
    if wide:
        found.append(
            f"{wide[0]} is a convolution with a kernel. PEFT's forward pass adds overlapping "
            "patches there, which no weight can; the merge is that of PEFT's merge_and_unload. "
            "Compare the result with the adapter."
        )
    return found


def _has_kernel(context: Context, parts: Parts) -> bool:
    shape = context.shape(f"{parts.module}.weight") or ()
    return len(shape) == 4 and shape[2:] != (1, 1)


OFT = Tuner("oft", OftConfig, _layer_key, _edits, check=_check, notes=_notes)
