"""DeepSeek's block FP8 and its kin (``quant_method: fp8``): float8 codes, a scale for each block.

``value = code * scale`` in float32, rounded to the model's dtype: `Fp8Dequantize` of transformers
integrations/finegrained_fp8.py. That derives the blocks from the scales' shape and so misreads or
refuses a matrix that its blocks do not divide; here, as in DeepSeek's own kernel and in
compressed-tensors' `FP8BlockDequantizer`, the blocks are those that config.json states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from remerge.errors import Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec, Read, Values
from remerge.sources.codecs.exponents import as_float
from remerge.sources.codecs.grid import Grid, largest, touched_rows
from remerge.sources.codecs.numbers import model_dtype, pair
from remerge.sources.codecs.parts import check_dtype, leftover, misfit, part
from remerge.sources.codecs.stated import quantisation_stated
from remerge.sources.dtypes import torch_dtype

_FLOAT8_MAX = 448.0
# Elements of the merged tensor held at once while codes are written, where blocks are smaller.
_PIECE = 2**20
_TINY = torch.finfo(torch.float32).tiny
_CODES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8"})

# Numbers of a layer that only quantised arithmetic needs.
_BESIDE = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale")


@dataclass(frozen=True)
class BlockFp8:
    """A float8 matrix, or a stack of them. Parts: ``codes`` F8_E4M3 (..., rows, columns),
    ``scales`` F32, BF16, F8_E8M0 or U8 (exponents), and activation scales by their names.

    ``powers``: scales are powers of two, whatever their dtype.
    """

    name: str
    dtype: str
    parts: Mapping[str, StoredTensor]
    grid: Grid
    powers: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts["codes"].shape

    @property
    def format(self) -> str:
        return f"fp8, blocks of {self.grid.block_rows} x {self.grid.block_columns}"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "scales"})

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.grid.columns
        row, stop = touched_rows(width, first, count)
        scales = as_float(self.grid.numbers(read, self.parts["scales"], row, stop))
        codes = read(self.parts["codes"], row * width, (stop - row) * width).view(-1, width)
        values = codes.to(torch.float32) * self.grid.spread(scales, row, stop)
        found = values.to(torch_dtype(self.dtype))
        return found.flatten()[first - row * width :][:count]

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        if self.grid.high > 1:
            return {}
        return {"largest": largest(self.grid, values, 0, prod(self.shape[:-1]) // self.grid.rows)}

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        width = self.grid.wide if role == "scales" else self.grid.columns
        row, stop = touched_rows(width, first, count)
        if role == "scales":
            found = measured.get("largest")
            found = largest(self.grid, values, row, stop) if found is None else found[row:stop]
            rows = self._scales(found)[1]
        else:
            rows = self._codes(values, measured.get("largest"), row, stop)
        return rows.flatten()[first - row * width :][:count]

    def _codes(
        self, values: Values, measured: torch.Tensor | None, row: int, stop: int
    ) -> torch.Tensor:
        """Rows ``[row, stop)`` of codes; whole blocks at a time, unless their scales are known."""
        grid, width = self.grid, self.grid.columns
        rows = torch.empty((stop - row, width), dtype=torch.float8_e4m3fn)
        at = row if measured is not None else grid.first_row(grid.line(row))
        while at < stop:
            if measured is not None:
                end = min(at + max(_PIECE // width, 1), stop)
            else:
                more = max(_PIECE // (width * grid.block_rows), 1) - 1
                end = grid.stop_row(min(grid.line(at) + more, grid.line(stop - 1)))
            merged = values(at * width, (end - at) * width).to(torch.float32)
            line, last = grid.lines(at, end)
            if measured is not None:
                found = measured[line:last]
            else:
                found = largest(grid, partial(_held, merged, at * width), line, last)
            scaled = merged.view(-1, width) * grid.spread(self._scales(found)[0], at, end)
            codes = scaled.clamp_(-_FLOAT8_MAX, _FLOAT8_MAX).to(torch.float8_e4m3fn)
            rows[max(at - row, 0) : end - row] = codes[max(row - at, 0) : stop - at]
            at = end
        return rows

    def _scales(self, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What to multiply values by, float32, and what to store (`Fp8Quantize` of transformers
        integrations/finegrained_fp8.py)."""
        forward = _FLOAT8_MAX / largest
        # A block of zeros, or of numbers whose scale float32 cannot hold, keeps scale one.
        forward = torch.where(forward.isfinite(), forward, 1.0)
        inverse = 1.0 / forward
        kind = self.parts["scales"].dtype
        if self.powers:
            # The logarithm through float64, so that every CPU rounds it to the same float32.
            exact = torch.log2(inverse.clamp(min=_TINY).to(torch.float64)).to(torch.float32)
            inverse = torch.pow(2.0, torch.ceil(exact))
        if self.powers or kind != "F32":
            inverse = inverse.to(torch.float8_e8m0fnu if self.powers else torch_dtype(kind))
            forward = 1.0 / inverse.to(torch.float32)
        if kind == "U8":
            return forward, inverse.view(torch.uint8)
        return forward, inverse.to(torch_dtype(kind))


def _held(merged: torch.Tensor, origin: int, first: int, count: int) -> torch.Tensor:
    """Values that are in memory already, from element ``origin`` on."""
    return merged[first - origin :][:count]


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """The float8 tensors of a checkpoint; see `Find`."""
    stated = quantisation_stated(config)
    block = stated.get("weight_block_size", [128, 128])
    blocks = None if block is None else pair(block, "weight_block_size")
    powers = stated.get("scale_fmt") == "ue8m0"
    found: list[Codec] = []
    used: set[str] = set()
    for name, codes in tensors.items():
        scales = _scales_of(name, tensors)
        if scales is None and codes.dtype not in _CODES:
            continue
        if codes.dtype == "I8":
            raise Unsupported(
                f"Tensor {name!r} is stored as I8 in a float8 base, which is not read here.",
                why="Such tensors hold two 4-bit floats in each byte (DeepSeek-V4's experts).",
                hint="Merge into the unquantised original of this base.",
            )
        check_dtype(codes, "F8_E4M3")
        if scales is None:
            scales = part(tensors, f"{name}_scale_inv", name)
        check_dtype(scales, "F32", "BF16", "F8_E8M0", "U8")
        grid = _grid(codes, scales, blocks)
        parts = {"codes": codes, "scales": scales} | _beside(name, tensors)
        bytes_ = scales.dtype in ("F8_E8M0", "U8")
        found.append(BlockFp8(name, model_dtype(config), parts, grid, powers or bytes_))
        used.update(stored.name for stored in parts.values())
    for name, stored in tensors.items():
        if name.endswith(("_scale_inv", ".weight_scale")) and name not in used:
            raise leftover(stored, "the checkpoint has no codes that it belongs to")
    return found


def _scales_of(name: str, tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
    names = [f"{name}_scale_inv", f"{name}_scale"]
    if name.endswith(".weight"):
        # DeepSeek-V4 and Mistral Large 4, by FineGrainedFP8HfQuantizer.update_weight_conversions.
        stem = name.removesuffix("weight")
        names += [f"{stem}scale", f"{stem}qscale_weight"]
    return next((tensors[n] for n in names if n in tensors), None)


def _beside(name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    stem = name.removesuffix("weight") if name.endswith(".weight") else f"{name}_"
    return {role: tensors[stem + role] for role in _BESIDE if stem + role in tensors}


def _grid(codes: StoredTensor, scales: StoredTensor, blocks: tuple[int, int] | None) -> Grid:
    """The blocks that the scales belong to: those of config.json, one for a matrix, one for the
    whole tensor, or equal pieces of each row. Raises `BadInput` for any other shape."""
    if len(codes.shape) < 2 or not prod(codes.shape):
        raise misfit(codes, "two or more dimensions, none of them empty,", "it is a matrix")
    *stack, rows, columns = codes.shape
    high, wide = blocks or (rows, columns)
    high, wide = min(high, rows), min(wide, columns)
    if scales.shape == (*stack, -(-rows // high), -(-columns // wide)):
        return Grid(rows, columns, high, wide)
    if prod(scales.shape) == 1:
        whole = prod(codes.shape[:-1])
        return Grid(whole, columns, whole, columns)
    if scales.shape in (tuple(stack), (*stack, 1, 1)):
        return Grid(rows, columns, rows, columns)
    pieces = scales.shape[-1] if scales.shape[:-1] == codes.shape[:-1] else 0
    if pieces and columns % pieces == 0:
        return Grid(rows, columns, 1, columns // pieces)
    raise misfit(
        scales,
        f"shape {[*stack, -(-rows // high), -(-columns // wide)]}",
        f"{codes.name!r} has shape {list(codes.shape)} in blocks of {high} x {wide}",
    )
