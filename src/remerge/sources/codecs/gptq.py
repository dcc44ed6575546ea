"""GPTQ tensors (arXiv:2210.17323): integer codes packed along the inputs, scales by group.

``value[out, in] = scales[g, out] * (code[in, out] - zero[g, out])`` with ``g = g_idx[in]``, the
difference exact and the product rounded once to the dtype of the scales: `dequantize_weight` of
gptqmodel/nn_modules/qlinear/__init__.py and torch.py (7.7). Checkpoints of format ``gptq`` store
every zero less one, those of ``gptq_v2`` store it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from remerge.errors import BadInput, Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec, Read
from remerge.sources.codecs.columns import read_columns
from remerge.sources.codecs.conv1d import as_stored
from remerge.sources.codecs.packing import unpack_columns, unpack_rows
from remerge.sources.codecs.parts import (
    check_absent,
    check_dtype,
    check_matrix,
    check_shape,
    leftover,
    misfit,
    part,
)
from remerge.sources.codecs.stated import quantisation_stated, stated_integer, stated_word

_BITS = (2, 3, 4, 8)
# One in every field of a word. gptqmodel adds it to whole words (`convert_gptq_v1_to_v2_format`
# of utils/model.py), so that a field of ones carries into the next, which undoes its writer's
# borrow. Only zeros of 3 bits, which straddle words, are taken one by one.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_ORIGINAL = "Merge into the unquantised original of this base."


@dataclass(frozen=True)
class Gptq:
    """A Linear's weight as GPTQ stores it.

    Parts: ``codes`` I32 (in * bits / 32, out), ``zeros`` I32 (groups, out * bits / 32), ``scales``
    (groups, out) and perhaps ``groups`` I32 (in,), the group of each input.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    group_size: int
    zeros_less_one: bool
    parts: Mapping[str, StoredTensor]

    @property
    def dtype(self) -> str:
        return self.parts["scales"].dtype

    @property
    def format(self) -> str:
        return f"gptq {self.bits} bit"

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.shape[1]
        row = first // width
        rows = -(-(first + count) // width) - row
        codes = unpack_rows(read_columns(read, self.parts["codes"], row, rows), self.bits)[:width]
        group = self._groups(read)
        codes -= self._zeros(read, row, rows)[group]
        values = read_columns(read, self.parts["scales"], row, rows)[group].mul_(codes)
        return values.T.reshape(-1)[first - row * width :][:count]

    def _zeros(self, read: Read, first: int, count: int) -> torch.Tensor:
        """The zero points of outputs ``[first, first + count)``: int16 (groups, count)."""
        # Three words hold 32 zeros of 3 bits; one word holds a whole number of the others.
        words = 3 if self.bits == 3 else 1
        fields = words * 32 // self.bits
        start = first // fields * words
        stop = -(-(first + count) // fields) * words
        packed = read_columns(read, self.parts["zeros"], start, stop - start)
        if self.zeros_less_one and self.bits != 3:
            packed += _ONES[self.bits]
        zeros = unpack_columns(packed, self.bits)[:, first % fields :][:, :count]
        return (zeros + 1) & 7 if self.zeros_less_one and self.bits == 3 else zeros

    def _groups(self, read: Read) -> torch.Tensor:
        """The group of each input: int32 (in,)."""
        width = self.shape[1]
        if "groups" not in self.parts:
            return torch.arange(width, dtype=torch.int32) // self.group_size
        group = read(self.parts["groups"], 0, width)
        groups = self.parts["scales"].shape[0]
        wrong = group[(group < 0) | (group >= groups)]
        if len(wrong):
            raise BadInput(
                f"Tensor {self.parts['groups'].name!r} names group {int(wrong[0])}, where there "
                f"are {groups} groups of scales.",
                why="The checkpoint is damaged.",
                hint="Download the base again.",
            )
        return group


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """All GPTQ tensors, in the order of the checkpoint.

    Raises `BadInput` for missing, left over or ill-fitting parts, `Unsupported` for the other
    formats of gptqmodel (marlin, gptq_p, bitblas and more) and other numbers of bits.
    """
    stated = quantisation_stated(config)
    layout = stated_word(stated, "checkpoint_format", "format") or "gptq"
    if stated.get("is_marlin_format"):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        raise Unsupported(
            f"The base is stored in the format {layout} of gptqmodel, which is not read here.",
            why="Formats that are: gptq and gptq_v2.",
            hint=_ORIGINAL,
        )
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    found = [_gptq(module, stated, layout == "gptq", tensors) for module in modules]
    used = {stored.name for codec in found for stored in codec.parts.values()}
    for name, stored in tensors.items():
        if name.endswith((".qzeros", ".g_idx")) and name not in used:
            raise leftover(stored, f"there is no {name.rpartition('.')[0] + '.qweight'!r}")
    return [as_stored(config, codec) for codec in found]


def _gptq(
    module: str,
    stated: Mapping[str, Any],
    zeros_less_one: bool,
    tensors: Mapping[str, StoredTensor],
) -> Gptq:
    name = f"{module}.weight"
    check_absent(tensors, name, f"{module}.qweight")
    codes = tensors[f"{module}.qweight"]
    zeros = part(tensors, f"{module}.qzeros", name)
    scales = part(tensors, f"{module}.scales", name)
    parts = {"codes": codes, "zeros": zeros, "scales": scales}
    for stored in (codes, zeros):
        check_dtype(stored, "I32")
        check_matrix(stored)
    check_dtype(scales, "F16", "BF16", "F32")
    outputs, groups = codes.shape[1], zeros.shape[0]
    check_shape(scales, (groups, outputs), f"{codes.name!r} and {zeros.name!r} ask for it")
    inputs = None
    group = tensors.get(f"{module}.g_idx")
    if group is not None:
        check_dtype(group, "I32")
        if len(group.shape) != 1 or not group.shape[0]:
            raise misfit(group, "one dimension", "it names the group of each input")
        parts["groups"] = group
        inputs = group.shape[0]
    bits = _bits(stated, codes, zeros, inputs)
    if inputs is None:
        inputs = codes.shape[0] * 32 // bits
    size = _group_size(stated, scales, inputs, group is not None)
    return Gptq(name, (outputs, inputs), bits, size, zeros_less_one, parts)


def _bits(
    stated: Mapping[str, Any], codes: StoredTensor, zeros: StoredTensor, inputs: int | None
) -> int:
    """The width of the codes: what is stated, or what the shapes say where layers differ."""
    said = stated_integer(stated, "bits")
    if said is not None and said not in _BITS:
        raise Unsupported(
            f"The base is GPTQ with {said} bits, which is not read here.", hint=_ORIGINAL
        )
    fitting = [
        bits
        for bits in _BITS
        if _words(codes.shape[1], bits) == zeros.shape[1]
        and (bits != 3 or codes.shape[0] % 3 == 0)
        and (inputs is None or _words(inputs, bits) == codes.shape[0])
    ]
    if said in fitting:
        return said
    if len(fitting) == 1 and (said is None or stated.get("dynamic")):
        return fitting[0]
    raise misfit(
        codes,
        "a shape that agrees with its other parts",
        f"{zeros.name!r} has shape {list(zeros.shape)}, {said or 'unknown'} bits are stated"
        + (f" and g_idx names {inputs:,} inputs" if inputs is not None else ""),
    )


def _words(count: int, bits: int) -> int | None:
    """How many words hold so many codes; None where the format has no such packing."""
    if bits == 3 and count % 32:
        return None
    return -(-count * bits // 32)


def _group_size(stated: Mapping[str, Any], scales: StoredTensor, inputs: int, listed: bool) -> int:
    """How many inputs share a scale; ``listed`` where g_idx says it for each input."""
    groups = scales.shape[0]
    size = stated_integer(stated, "group_size")
    size = inputs if size == -1 else size
    if size is not None and size > 0 and -(-inputs // size) == groups:
        return size
    # A layer may have a group size of its own; it is known where the groups are equal.
    even = inputs % groups == 0
    if listed or (even and (size is None or stated.get("dynamic"))):
        return max(inputs // groups, 1)
    raise misfit(scales, "a row for each group", f"{inputs:,} inputs stand in groups of {size}")
