"""Codes of one byte: int8, float8 and MXFP8 of compressed-tensors (int-quantized, float-quantized,
naive-quantized, mxfp8-quantized).

``value = (code - zero point) * scale``, each step in the scale's dtype: `_dequantize` of
compressed_tensors quantization/lifecycle/forward_helpers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from remerge.errors import BadInput
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Read, Values
from remerge.sources.codecs.exponents import POWERS, shared_exponents
from remerge.sources.codecs.grid import Grid, bands, extremes, touched_rows
from remerge.sources.codecs.schemes import Scheme
from remerge.sources.dtypes import torch_dtype

_FLOAT8_MAX = 448.0
_HIGHEST = 8


@dataclass(frozen=True)
class OneByte:
    """A matrix, or a stack of them. Parts: ``codes`` I8 or F8_E4M3 (..., rows, columns),
    ``weight_scale`` F16, BF16, F32 or U8 (exponents), perhaps ``weight_zero_point``, both as the
    grid lies, and numbers that concern activations only."""

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]
    grid: Grid

    @property
    def dtype(self) -> str:
        scale = self.parts["weight_scale"].dtype
        return "BF16" if scale == "U8" else scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts["codes"].shape

    @property
    def format(self) -> str:
        return f"compressed-tensors {self.scheme.words}"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "weight_scale", "weight_zero_point"} & self.parts.keys())

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.grid.columns
        row, stop = touched_rows(width, first, count)
        dtype = torch_dtype(self.dtype)
        scales = self.grid.numbers(read, self.parts["weight_scale"], row, stop)
        if scales.dtype == torch.uint8:
            scales = POWERS[scales.to(torch.int64)].to(dtype)
        codes = read(self.parts["codes"], row * width, (stop - row) * width)
        values = codes.view(-1, width).to(dtype)
        if "weight_zero_point" in self.parts:
            zeros = self.grid.numbers(read, self.parts["weight_zero_point"], row, stop)
            values = values - self.grid.spread(zeros.to(dtype), row, stop)
        values = values * self.grid.spread(scales, row, stop)
        return values.flatten()[first - row * width :][:count]

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        if self.grid.high > 1:
            return {}
        low, high = extremes(self.grid, values, 0, prod(self.shape[:-1]) // self.grid.rows)
        return {"low": low, "high": high}

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        width = self.grid.columns if role == "codes" else self.grid.wide
        row, stop = touched_rows(width, first, count)
        pieces = bands(self.grid, row, stop) if role == "codes" else [(row, stop)]
        rows = torch.cat([self._encoded(role, values, measured, *piece) for piece in pieces])
        return rows.flatten()[first - row * width :][:count]

    def _encoded(
        self, role: str, values: Values, measured: Mapping[str, torch.Tensor], row: int, stop: int
    ) -> torch.Tensor:
        """Rows ``[row, stop)`` of a part."""
        line, end = row, stop
        merged, width = torch.empty(0), self.grid.columns
        if role == "codes":
            line, end = self.grid.lines(row, stop)
            merged = values(row * width, (stop - row) * width).to(torch.float32)
            values = _beside(merged, row * width, values)
        if "low" in measured:
            low, high = measured["low"][line:end], measured["high"][line:end]
        else:
            low, high = extremes(self.grid, values, line, end)
        stored, scales, zeros = self._scales(low, high)
        if role == "weight_scale":
            return stored
        if role == "weight_zero_point":
            return zeros.to(torch_dtype(self.parts[role].dtype))
        scaled = merged.view(-1, width) / self.grid.spread(scales, row, stop)
        if self.scheme.kind == "float":
            return scaled.clamp_(-_FLOAT8_MAX, _FLOAT8_MAX).to(torch.float8_e4m3fn)
        scaled += self.grid.spread(zeros, row, stop)
        return scaled.clamp_(*_range(self.scheme)).round_().to(torch.int8)

    def _scales(
        self, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scales as stored and as float32, and zero points, whole numbers in float32:
        `calculate_qparams` of compressed_tensors quantization/utils/helpers.py."""
        kind = self.parts["weight_scale"].dtype
        zeros = torch.zeros_like(low)
        if kind == "U8":
            stored = shared_exponents(torch.maximum(-low, high), _HIGHEST)
            return stored, POWERS[stored.to(torch.int64)], zeros
        lowest, highest = _range(self.scheme)
        if self.scheme.symmetric:
            scales = torch.maximum(-low, high) / ((highest - lowest) / 2)
        else:
            scales = (high - low) / (highest - lowest)
            # A block of zeros has no scale, and nothing for a zero point to move.
            points = torch.nan_to_num(lowest - low / scales, nan=0.0)
            zeros = points.clamp_(lowest, highest).round_()
        scales = torch.where(scales == 0, torch.finfo(torch.float32).eps, scales)
        dtype = torch_dtype(kind)
        stored = scales.to(dtype)
        if (stored.isinf() & scales.isfinite()).any():
            raise BadInput(
                f"Tensor {self.name} has values of {float(high.maximum(-low).max()):.3g}, whose "
                f"scale does not fit {str(dtype).removeprefix('torch.')}.",
                hint="Merge with --dtype bfloat16 or float32, or check the adapter's scaling.",
            )
        # What float16 cannot hold would divide by zero.
        stored = torch.where(stored == 0, torch.tensor(torch.finfo(dtype).eps, dtype=dtype), stored)
        return stored, stored.to(torch.float32), zeros


def _beside(held: torch.Tensor, origin: int, values: Values) -> Values:
    """Values of which those from element ``origin`` on are in memory already."""

    def found(first: int, count: int) -> torch.Tensor:
        if origin <= first and first + count <= origin + len(held):
            return held[first - origin :][:count]
        return values(first, count)

    return found


def _range(scheme: Scheme) -> tuple[float, float]:
    if scheme.kind == "float":
        return -_FLOAT8_MAX, _FLOAT8_MAX
    return -(2.0 ** (scheme.bits - 1)), 2.0 ** (scheme.bits - 1) - 1
