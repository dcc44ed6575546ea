"""Four-bit floats of compressed-tensors: NVFP4 (nvfp4-pack-quantized) and MXFP4
(mxfp4-pack-quantized).

``value = float4 * scale``; NVFP4 divides the float8 scale of 16 columns by a global scale first,
MXFP4 has one exponent for 32 columns. Decoded in the dtypes of `NVFP4PackedCompressor.decompress`
of compressed_tensors compressors/nvfp4/base.py: the scale as bfloat16, its quotient as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs import float4
from remerge.sources.codecs.codec import Read, Values
from remerge.sources.codecs.exponents import POWERS, shared_exponents
from remerge.sources.codecs.grid import Grid, bands, largest, touched_rows
from remerge.sources.codecs.schemes import Scheme

_FLOAT8_MAX = 448.0
_FLOAT8_EPSILON = 0.125
_HIGHEST = 2


@dataclass(frozen=True)
class PackedFloat4:
    """A matrix. Parts: ``codes`` U8 (rows, columns / 2), ``weight_scale`` F8_E4M3 or U8
    (exponents), perhaps ``weight_global_scale`` F32 (1,), and numbers of activations.

    ``global_scale`` is the base's, None without that part.
    """

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]
    grid: Grid
    global_scale: float | None

    @property
    def dtype(self) -> str:
        return "BF16"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.rows, self.grid.columns

    @property
    def format(self) -> str:
        return f"compressed-tensors {self.scheme.words}"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "weight_scale", "weight_global_scale"} & self.parts.keys())

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.grid.columns
        row, stop = touched_rows(width, first, count)
        scales = self.grid.numbers(read, self.parts["weight_scale"], row, stop)
        if scales.dtype == torch.uint8:
            scales = POWERS[scales.to(torch.int64)]
        scales = scales.to(torch.bfloat16)
        if "weight_global_scale" in self.parts:
            part = self.parts["weight_global_scale"]
            # A scalar would leave the quotient in bfloat16, one element makes it float32.
            scales = scales / read(part, 0, 1).view(part.shape)
        codes = read(self.parts["codes"], row * width // 2, (stop - row) * width // 2)
        values = float4.unpack(codes).view(-1, width).to(scales.dtype)
        values = (values * self.grid.spread(scales, row, stop)).to(torch.bfloat16)
        return values.flatten()[first - row * width :][:count]

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        """The global scale: the base's while it covers the merged tensor, else derived anew as
        `generate_gparam` of compressed_tensors quantization/utils/helpers.py derives it.

        Layers that vLLM fuses (query, key and value; gate and up) were given one global scale,
        and lose accuracy there where they differ; so it changes only when it must.
        """
        if self.global_scale is None:
            return {}
        rows, columns = self.shape
        found = largest(Grid(rows, columns, rows, columns), values, 0, 1).view(1)
        kept = torch.tensor([self.global_scale])
        if (found / float4.LARGEST * kept).item() <= _FLOAT8_MAX:
            return {"global": kept}
        return {"global": _FLOAT8_MAX * float4.LARGEST / found}

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        if role == "weight_global_scale":
            return measured["global"][first : first + count]
        width = self.grid.columns // 2 if role == "codes" else self.grid.wide
        row, stop = touched_rows(width, first, count)
        if role == "weight_scale":
            rows = self._scales(largest(self.grid, values, row, stop), measured)[0]
        else:
            pieces = bands(self.grid, row, stop)
            rows = torch.cat([self._codes(values, measured, *piece) for piece in pieces])
        return rows.flatten()[first - row * width :][:count]

    def _codes(
        self, values: Values, measured: Mapping[str, torch.Tensor], row: int, stop: int
    ) -> torch.Tensor:
        """Rows ``[row, stop)`` of codes."""
        size = self.grid.columns
        _, scales = self._scales(largest(self.grid, values, row, stop), measured)
        merged = values(row * size, (stop - row) * size).to(torch.float32).view(-1, size)
        return float4.pack(merged / self.grid.spread(scales, row, stop))

    def _scales(
        self, found: torch.Tensor, measured: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales as stored, and as float32 to divide values by: `calculate_qparams` of
        compressed_tensors quantization/utils/helpers.py."""
        if self.parts["weight_scale"].dtype == "U8":
            exponents = shared_exponents(found, _HIGHEST)
            return exponents, POWERS[exponents.to(torch.int64)]
        scales = found / float4.LARGEST
        if "global" in measured:
            scales = measured["global"] * scales
        stored = scales.clamp_(max=_FLOAT8_MAX).to(torch.float8_e4m3fn)
        wide = stored.to(torch.float32)
        wide = torch.where(wide == 0, _FLOAT8_EPSILON, wide)
        return wide.to(torch.float8_e4m3fn), wide / measured.get("global", torch.ones(1))
