"""bitsandbytes 4-bit tensors, NF4 and FP4: two codes a byte, one absmax for each block.

``value = table[code] * absmax[element // blocksize]`` in float32, rounded once to the dtype in the
tensor's state. With double quantisation ``absmax = map[code8] * nested_absmax[block //
nested_blocksize] + offset``. Blocks run through the flattened tensor and straddle rows. Both ways
are those of bitsandbytes/backends/default/ops.py (QLoRA, arXiv:2305.14314), which all its kernels
mean to follow. Of those for the CPU in 0.50, the one for AVX-512 decodes blocks that straddle rows
with the absmax of another block, and the one that quantises absmax looks codes up in a table too
coarse for a few in a thousand; neither is followed in that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.bnb_state import Nested, QuantState
from remerge.sources.codecs.codec import Read, Values
from remerge.sources.dtypes import itemsize, torch_dtype

# `get_4bit_type` of bitsandbytes/functional.py, in the order of the codes. Code 8 of FP4 is zero,
# to which some kernels of the library give a sign.
# fmt: off
TABLES = {
    "nf4": torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ], dtype=torch.float32),
    "fp4": torch.tensor([
        0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0,
        0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0,
    ], dtype=torch.float32) / 12.0,
}
# fmt: on

# The two values of each byte, high nibble first.
_PAIRS = {
    kind: torch.stack((table.repeat_interleave(16), table.repeat(16)), dim=1)
    for kind, table in TABLES.items()
}
_ORDER = {kind: torch.argsort(table, stable=True) for kind, table in TABLES.items()}
_BOUNDS = {
    kind: (table[_ORDER[kind][:-1]] + table[_ORDER[kind][1:]]) / 2 for kind, table in TABLES.items()
}
_TINY = 1e-38

# Elements quantised at once: a whole number of blocks of any size.
_PIECE = 2**18


@dataclass(frozen=True)
class FourBit:
    """A tensor quantised by ``bitsandbytes.functional.quantize_4bit``.

    Parts: ``codes``, ``absmax``, ``quant_map``, ``quant_state`` and, where double-quantised,
    ``nested_absmax`` and ``nested_quant_map``; ``nested_bounds`` lie midway between the values of
    that map: float32 (255,).
    """

    name: str
    state: QuantState
    parts: Mapping[str, StoredTensor]
    nested_bounds: torch.Tensor = field(compare=False)

    @property
    def dtype(self) -> str:
        return self.state.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.state.shape

    @property
    def format(self) -> str:
        return f"bitsandbytes {self.state.kind}"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "absmax", *(("nested_absmax",) if self.state.nested else ())})

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        codes, size = self.parts["codes"], itemsize(self.parts["codes"].dtype)
        stop = first + count
        start = first // 2 // size
        packed = read(codes, start, -(-stop // (2 * size)) - start).view(torch.uint8)
        values = _PAIRS[self.state.kind].index_select(0, packed.int()).view(-1)
        values = values[first - 2 * size * start :][:count]
        block = first // self.state.blocksize
        absmax = self._absmax(read, block, -(-stop // self.state.blocksize))
        values *= _spread(absmax, self.state.blocksize, first, count)
        return values.to(torch_dtype(self.state.dtype))

    def _absmax(self, read: Read, first: int, stop: int) -> torch.Tensor:
        """The float32 absmax of blocks ``[first, stop)``."""
        stored = read(self.parts["absmax"], first, stop - first)
        if self.state.nested is None:
            return stored
        size = self.state.nested.blocksize
        scales = read(self.parts["nested_absmax"], first // size, -(-stop // size) - first // size)
        values = read(self.parts["nested_quant_map"], 0, 256).index_select(0, stored.int())
        values *= _spread(scales, size, first, stop - first)
        return values + torch.tensor(self.state.nested.offset, dtype=torch.float32)

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        return {}

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        if role == "codes":
            dtype = torch_dtype(self.parts["codes"].dtype)
            start, bytes_ = 2 * first * dtype.itemsize, count * dtype.itemsize
            stop = min(start + 2 * bytes_, prod(self.state.shape))
            packed = torch.empty(bytes_, dtype=torch.uint8)
            for at, block in self._blocks(values, start, stop):
                wanted = self._codes(block)[max(start - at, 0) : stop - at]
                byte = (max(at, start) - start) // 2
                packed[byte : byte + -(-len(wanted) // 2)] = self._packed(wanted)
            return packed.view(dtype)
        nested = self.state.nested
        if nested is None:
            return self._absmax_of(values, first, first + count)
        found = [torch.empty(0, dtype=torch_dtype(self.parts[role].dtype))]
        if role == "nested_absmax":
            for group in range(first, first + count):
                found.append(_block_absmax(self._centred(values, nested, group), nested.blocksize))
            return torch.cat(found)
        for group in range(first // nested.blocksize, -(-(first + count) // nested.blocksize)):
            at = group * nested.blocksize
            centred = self._centred(values, nested, group)
            coded = _nearest(centred, nested.blocksize, self.nested_bounds).to(torch.uint8)
            found.append(coded[max(first - at, 0) : first + count - at])
        return torch.cat(found)

    def _blocks(self, values: Values, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Whole blocks that cover elements ``[start, stop)``, in float32, with where they lie."""
        size = self.state.blocksize
        end = min(-(-stop // size) * size, prod(self.state.shape))
        for at in range(start // size * size, end, _PIECE):
            yield at, values(at, min(_PIECE, end - at)).to(torch.float32)

    def _absmax_of(self, values: Values, first: int, stop: int) -> torch.Tensor:
        """The absmax that `quantize_4bit` gives blocks ``[first, stop)``."""
        size = self.state.blocksize
        ranges = self._blocks(values, first * size, min(stop * size, prod(self.state.shape)))
        return torch.cat([torch.empty(0), *(_block_absmax(block, size) for _, block in ranges)])

    def _codes(self, block: torch.Tensor) -> torch.Tensor:
        """The codes of whole blocks, the last of which may be the tensor's short one: uint8."""
        kind = self.state.kind
        found = _nearest(block, self.state.blocksize, _BOUNDS[kind])
        return _ORDER[kind].to(torch.uint8).index_select(0, found)

    def _packed(self, codes: torch.Tensor) -> torch.Tensor:
        """Two codes a byte; an odd end is filled with the code of zero."""
        if codes.numel() % 2:
            codes = torch.cat([codes, self._codes(torch.zeros(1))])
        return (codes[::2] << 4) | codes[1::2]

    def _centred(self, values: Values, nested: Nested, group: int) -> torch.Tensor:
        """One block of absmax values less the offset, which stays the base's."""
        blocks = -(-prod(self.state.shape) // self.state.blocksize)
        first = group * nested.blocksize
        absmax = self._absmax_of(values, first, min(first + nested.blocksize, blocks))
        return absmax - torch.tensor(nested.offset, dtype=torch.float32)


def _spread(scales: torch.Tensor, size: int, first: int, count: int) -> torch.Tensor:
    """Scales of blocks, from the one of element ``first`` on, for each of ``count`` elements."""
    return scales.repeat_interleave(size)[first % size :][:count]


def _block_absmax(block: torch.Tensor, size: int) -> torch.Tensor:
    whole = block.numel() // size
    absmax = block[: whole * size].view(whole, size).abs().amax(dim=1)
    if block.numel() % size:
        short = block[whole * size :].abs().amax().clamp(min=_TINY).view(1)
        absmax = torch.cat([absmax, short])
    return absmax


def _nearest(block: torch.Tensor, size: int, bounds: torch.Tensor) -> torch.Tensor:
    """Where each element, scaled by the absmax of its block, falls between the bounds: int32."""
    absmax = _block_absmax(block, size)
    whole = block.numel() // size * size
    factors = 1.0 / absmax[: whole // size].clamp(min=_TINY)
    scaled = torch.empty_like(block)
    scaled[:whole] = (block[:whole].view(-1, size) * factors.view(-1, 1)).view(-1)
    # bitsandbytes divides the short block, and multiplies the others by the reciprocal.
    scaled[whole:] = block[whole:] / absmax[-1]
    return torch.bucketize(scaled.clamp_(-1, 1), bounds, out_int32=True)
