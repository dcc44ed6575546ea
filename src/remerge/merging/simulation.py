"""A 16-bit base as QLoRA training saw it: rounded through NF4 first (arXiv:2305.14314).

Training loads the 16-bit base, quantises the weights of its fully connected layers with
bitsandbytes in blocks of 64, and trains against what they decode to. The same rounding, block by
block, gives the same weights without a quantised checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from remerge.adapters.names import ModelHint, model_names
from remerge.adapters.regions import Region, matrix_view
from remerge.errors import Unsupported, UsageError
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.bnb_4bit import FourBit
from remerge.sources.codecs.bnb_state import QuantState
from remerge.sources.codecs.codec import Read
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.reading import DecodedBase, Source

_BLOCK = 64


@dataclass(frozen=True)
class Simulated:
    """A plain tensor read as what NF4 makes of it."""

    stored: StoredTensor

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def format(self) -> str:
        return "simulated nf4"

    @property
    def parts(self) -> Mapping[str, StoredTensor]:
        return {"codes": self.stored}

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        elements = math.prod(self.shape)
        codec = _codec(self.stored, elements)
        roles = {part.name: role for role, part in codec.parts.items()}

        def values(start: int, length: int) -> torch.Tensor:
            return read(self.stored, start, length).to(torch.float64)

        def encoded(part: StoredTensor, start: int, length: int) -> torch.Tensor:
            return codec.encode(roles[part.name], values, {}, start, length)

        return codec.decode(encoded, first, count)


def _codec(stored: StoredTensor, elements: int) -> FourBit:
    """The NF4 tensor that bitsandbytes would have made of this one."""
    blocks = -(-elements // _BLOCK)
    parts = {
        "codes": StoredTensor("codes", "", "U8", (-(-elements // 2), 1), 0, -(-elements // 2)),
        "absmax": StoredTensor("absmax", "", "F32", (blocks,), 0, 4 * blocks),
    }
    state = QuantState("nf4", _BLOCK, stored.dtype, stored.shape, None)
    return FourBit(stored.name, state, parts, torch.empty(0))


def simulated(base: DecodedBase, hint: ModelHint) -> DecodedBase:
    """The base with the weights that QLoRA training quantises read through NF4.

    Raises `UsageError` for a base that is quantised already, `Unsupported` for a model whose
    layers are not known or lie on disk in pieces that cut its blocks.
    """
    if base.codecs:
        raise UsageError(
            "--simulate nf4 is for a 16-bit base, and this one is quantised.",
            hint="Leave it out: the base's own values are what training saw.",
        )
    # Importing transformers takes seconds.
    from remerge.adapters.model_names import ModelNames

    names = model_names(base.config, base.tensors, hint)
    if not isinstance(names, ModelNames):
        raise Unsupported(
            f"--simulate nf4 needs to know which layers of {base.config.get('model_type')!r} are "
            "fully connected, and transformers has no such model.",
        )
    covered: dict[str, int] = {}
    for parameter in names.quantised_weights():
        layer = names.layer(parameter.removesuffix(".weight"))
        if layer is None or layer.kind != "Linear":
            # bitsandbytes quantises the transpose of a Conv1D.
            raise _cut(parameter)
        for region in names.regions(parameter):
            _check_blocks(region, base.tensors)
            covered[region.tensor] = covered.get(region.tensor, 0) + len(region.rows)
    tensors: dict[str, Source] = dict(base.tensors)
    for name, rows in covered.items():
        stored = base.tensors[name]
        if rows != matrix_view(stored.shape)[0]:
            raise _cut(name)
        if isinstance(stored, StoredTensor) and stored.dtype in MERGEABLE:
            tensors[name] = Simulated(stored)
    return DecodedBase(base.config, tensors, base.codecs)


def _check_blocks(region: Region, tensors: Mapping[str, Source]) -> None:
    """Refuse a parameter whose blocks of 64 are not blocks of the tensor that holds it."""
    columns = matrix_view(tensors[region.tensor].shape)[1]
    runs = all(
        np.array_equal(np.diff(np.asarray(index)), np.ones(len(index) - 1))
        for index in (region.rows, region.cols, region.parameter_rows, region.parameter_cols)
    )
    whole = len(region.cols) == columns and int(region.parameter_cols[0]) == 0
    starts = int(region.rows[0]) * columns, int(region.parameter_rows[0]) * columns
    if region.transposed or not runs or not whole or any(start % _BLOCK for start in starts):
        raise _cut(region.tensor)


def _cut(tensor: str) -> Unsupported:
    return Unsupported(
        f"--simulate nf4 cannot tell the blocks of {tensor}.",
        why="The checkpoint stores the layer's weight transposed, or in several pieces.",
        hint="Quantise the base with bitsandbytes, save it, and merge onto that.",
    )
