"""AWQ tensors (arXiv:2306.00978) as AutoAWQ's GEMM layers store them: 4 bit, packed by outputs.

``value[out, in] = (code[in, out] - zero[g, out]) * scales[g, out]`` with ``g = in // group_size``,
the difference exact and the product rounded once to the dtype of the scales: `dequantize_gemm` of
awq/utils/packing_utils.py in AutoAWQ 0.2.9, and of gptqmodel 7.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from remerge.errors import Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec, Read
from remerge.sources.codecs.columns import read_columns
from remerge.sources.codecs.conv1d import as_stored
from remerge.sources.codecs.packing import unpack_columns
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

_FIELDS = 8
# The output that each field of a word holds, from the lowest bits on.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_ORIGINAL = "Merge into the unquantised original of this base."


@dataclass(frozen=True)
class Awq:
    """A Linear's weight as AWQ's GEMM layers store it.

    Parts: ``codes`` I32 (in, out / 8), ``zeros`` I32 (groups, out / 8), ``scales`` (groups, out).
    """

    name: str
    parts: Mapping[str, StoredTensor]

    @property
    def dtype(self) -> str:
        return self.parts["scales"].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts["scales"].shape[1], self.parts["codes"].shape[0]

    @property
    def format(self) -> str:
        return "awq 4 bit"

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.shape[1]
        row = first // width
        rows = -(-(first + count) // width) - row
        scales = read_columns(read, self.parts["scales"], row, rows)
        group = torch.arange(width, dtype=torch.int32) // (width // len(scales))
        codes = self._unpacked(read, "codes", row, rows)
        codes -= self._unpacked(read, "zeros", row, rows)[group]
        values = scales[group].mul_(codes)
        return values.T.reshape(-1)[first - row * width :][:count]

    def _unpacked(self, read: Read, role: str, first: int, count: int) -> torch.Tensor:
        """The codes of outputs ``[first, first + count)``: int16 (rows of the part, count)."""
        start = first // _FIELDS
        stop = -(-(first + count) // _FIELDS)
        words = read_columns(read, self.parts[role], start, stop - start)
        return unpack_columns(words, 4, _ORDER)[:, first - start * _FIELDS :][:, :count]


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """All AWQ tensors, in the order of the checkpoint.

    Raises `BadInput` for missing, left over or ill-fitting parts, `Unsupported` for other layouts
    (gemv, gemv_fast, llm-awq, ...), other numbers of bits and scaled activations.
    """
    stated = quantisation_stated(config)
    layout = stated_word(stated, "version", "checkpoint_format", "format") or "gemm"
    if stated_word(stated, "backend") == "llm-awq":
        layout = "llm-awq"
    bits = stated_integer(stated, "bits", "w_bit")
    if layout != "gemm" or bits not in (None, 4):
        raise Unsupported(
            f"The base is AWQ of version {layout} with {bits or 4} bits, which is not read here.",
            why="Version gemm with 4 bits is.",
            hint=_ORIGINAL,
        )
    modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    size = stated_integer(stated, "group_size", "q_group_size")
    found = [_awq(module, size, tensors) for module in modules]
    used = {stored.name for codec in found for stored in codec.parts.values()}
    for name, stored in tensors.items():
        if name in used:
            continue
        if name.endswith((".qzeros", ".g_idx")):
            raise leftover(stored, f"there is no {name.rpartition('.')[0] + '.qweight'!r} of AWQ")
        if name.endswith(".scales"):
            # transformers' ScaledActivation: no model without AWQ has a place for it.
            raise Unsupported(
                f"Tensor {name!r} scales an activation, which an unquantised model cannot do.",
                hint=_ORIGINAL,
            )
    return [as_stored(config, codec) for codec in found]


def _awq(module: str, size: int | None, tensors: Mapping[str, StoredTensor]) -> Awq:
    name = f"{module}.weight"
    check_absent(tensors, name, f"{module}.qweight")
    codes = tensors[f"{module}.qweight"]
    zeros = part(tensors, f"{module}.qzeros", name)
    scales = part(tensors, f"{module}.scales", name)
    for stored in (codes, zeros):
        check_dtype(stored, "I32")
        check_matrix(stored)
    check_dtype(scales, "F16", "BF16", "F32")
    inputs, words = codes.shape
    groups = zeros.shape[0]
    check_shape(zeros, (groups, words), f"{codes.name!r} packs {_FIELDS * words:,} outputs")
    check_shape(scales, (groups, _FIELDS * words), f"{codes.name!r} and {zeros.name!r} ask for it")
    size = inputs if size == -1 else size
    if inputs % groups or size not in (None, inputs // groups):
        raise misfit(scales, "a row for each group", f"{inputs:,} inputs stand in groups of {size}")
    return Awq(name, {"codes": codes, "zeros": zeros, "scales": scales})
