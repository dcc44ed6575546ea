"""Integers of 1 to 8 bits packed into 32-bit words (pack-quantized of compressed-tensors).

A row is one stream of codes, lowest bits first, across the words' borders; codes are stored
unsigned, 2^(bits - 1) above their value. Zero points are packed the same way down the rows.
``value = (code - zero point) * scale``, each step in the scale's dtype:
`PackedQuantizationCompressor.decompress` and its helpers in compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Read
from remerge.sources.codecs.grid import Grid, by_matrix, touched_rows
from remerge.sources.codecs.schemes import Scheme
from remerge.sources.dtypes import torch_dtype


@dataclass(frozen=True)
class PackedInt:
    """A matrix, or a stack of them. Parts: ``codes`` I32 (..., rows, words), ``weight_scale``
    F16, BF16 or F32, perhaps ``weight_zero_point`` and ``weight_g_idx``, and ``weight_shape``.

    ``packed_zeros``: zero points I32 (..., words, groups), packed down the rows; else they are I8
    as the scales are.
    """

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    grid: Grid
    packed_zeros: bool

    @property
    def dtype(self) -> str:
        return self.parts["weight_scale"].dtype

    @property
    def format(self) -> str:
        return f"compressed-tensors {self.scheme.words}"

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.grid.columns
        row, stop = touched_rows(width, first, count)
        dtype = torch_dtype(self.dtype)
        words = self.parts["codes"].shape[-1]
        packed = read(self.parts["codes"], row * words, (stop - row) * words)
        values = unpack(packed.view(-1, words), self.scheme.bits)[:, :width].to(dtype)
        if "weight_zero_point" in self.parts:
            values = values - self._spread(read, self._zeros(read, row, stop).to(dtype), row, stop)
        scales = self.grid.numbers(read, self.parts["weight_scale"], row, stop)
        values = values * self._spread(read, scales, row, stop)
        return values.flatten()[first - row * width :][:count]

    def _spread(self, read: Read, numbers: torch.Tensor, row: int, stop: int) -> torch.Tensor:
        """Numbers of groups at each element; columns may name their groups (act-order)."""
        if "weight_g_idx" in self.parts:
            groups = read(self.parts["weight_g_idx"], 0, self.grid.columns)
            return numbers[:, groups.to(torch.int64)]
        return self.grid.spread(numbers, row, stop)

    def _zeros(self, read: Read, row: int, stop: int) -> torch.Tensor:
        """The zero points of rows ``[row, stop)``, laid out as their scales."""
        part = self.parts["weight_zero_point"]
        if not self.packed_zeros:
            return self.grid.numbers(read, part, row, stop)
        high, wide = part.shape[-2:]
        bits = self.scheme.bits
        found: list[torch.Tensor] = []
        for matrix, start, end in by_matrix(self.grid.rows, row, stop):
            # 32 rows lie in as many words as a code has bits.
            first, last = start // 32 * bits, min(-(-end // 32) * bits, high)
            words = read(part, (matrix * high + first) * wide, (last - first) * wide)
            zeros = unpack(words.view(-1, wide).T, bits).T
            found.append(zeros[start % 32 :][: end - start])
        return torch.cat(found)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The signed codes of int32 words (n, m) as int8 (n, codes), those in padding bits too."""
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        found = ((words.unsqueeze(2) >> shifts) & ((1 << bits) - 1)).flatten(1)
    else:
        unsigned = words.to(torch.int64) & 0xFFFFFFFF
        # A code may reach into the next word; the last one has none.
        both = unsigned | (torch.nn.functional.pad(unsigned[:, 1:], (0, 1)) << 32)
        at = torch.arange(words.shape[1] * 32 // bits) * bits
        found = (both[:, at // 32] >> (at % 32)) & ((1 << bits) - 1)
    return (found - (1 << (bits - 1))).to(torch.int8)
