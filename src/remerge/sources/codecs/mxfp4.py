"""MXFP4 experts as gpt-oss stores them: ``X_blocks`` and ``X_scales`` for a parameter X.

``value = float4 * 2^(byte - 127)``, rounded to the model's dtype, and transposed: the codes run
along a parameter's input dimension, while X is (experts, input, output), as checkpoints that are
not quantised store it (`convert_moe_packed_tensors` of transformers integrations/mxfp4.py).

Written back, a block's exponent follows compressed-tensors' rule (`shared_exponents`), which vLLM
took over; triton_kernels' `downcast_to_mxfp` rounds exponents up instead and so never saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs import float4
from remerge.sources.codecs.codec import Codec, Read, Values
from remerge.sources.codecs.exponents import POWERS, shared_exponents
from remerge.sources.codecs.grid import by_matrix, touched_rows
from remerge.sources.codecs.numbers import model_dtype
from remerge.sources.codecs.parts import check_dtype, leftover, misfit, part
from remerge.sources.dtypes import torch_dtype

_BLOCK = 32
_BYTES = _BLOCK // 2
_HIGHEST = 2

# Half of what each byte stands for: of 255, 2^128 itself is no float32.
_HALVES = torch.cat([POWERS[:1] / 2, POWERS[:-1]])

# Elements of the merged tensor held at once while blocks are written.
_PIECE = 2**20


@dataclass(frozen=True)
class MxFp4:
    """A stack of experts. Parts: ``codes`` U8 (experts, output, groups, 16), ``scales`` U8
    (experts, output, groups)."""

    name: str
    dtype: str
    parts: Mapping[str, StoredTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, output, groups, _ = self.parts["codes"].shape
        return experts, groups * _BLOCK, output

    @property
    def format(self) -> str:
        return "mxfp4"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "scales"})

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        _, inputs, outputs = self.shape
        groups = inputs // _BLOCK
        row, stop = touched_rows(outputs, first, count)
        found: list[torch.Tensor] = []
        for expert, start, end in by_matrix(inputs, row, stop):
            # Rows lie across the codes: a block holds 32 of them, for one output.
            size = outputs * groups
            scales = read(self.parts["scales"], expert * size, size).view(outputs, groups)
            codes = read(self.parts["codes"], expert * size * _BYTES, size * _BYTES)
            wanted = slice(start // _BLOCK, -(-end // _BLOCK))
            values = _decoded(codes.view(outputs, groups, _BYTES)[:, wanted], scales[:, wanted])
            rows = values.to(torch_dtype(self.dtype)).flatten(1).T[start % _BLOCK :]
            found.append(rows[: end - start].flatten())
        return torch.cat(found)[first - row * outputs :][:count]

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
        _, inputs, outputs = self.shape
        groups = inputs // _BLOCK
        width = groups * _BYTES if role == "codes" else groups
        row, stop = touched_rows(width, first, count)
        found = torch.empty((stop - row, groups, width // groups), dtype=torch.uint8)
        step = max(_PIECE // (_BLOCK * outputs), 1)
        for expert, start, end in by_matrix(outputs, row, stop):
            at = expert * outputs + start - row
            rows = found[at : at + end - start]
            for group in range(0, groups, step):
                many = min(step, groups - group)
                origin = (expert * inputs + group * _BLOCK) * outputs
                merged = values(origin, many * _BLOCK * outputs).view(many, _BLOCK, outputs)
                codes, scales = _quantised(merged[:, :, start:end])
                part = codes if role == "codes" else scales
                rows[:, group : group + many] = part.permute(2, 0, 1)
        return found.flatten()[first - row * width :][:count]

    def rounded(
        self, values: Values, measured: Mapping[str, torch.Tensor], first: int, count: int
    ) -> torch.Tensor:
        _, _, outputs = self.shape
        band = _BLOCK * outputs
        start, stop = touched_rows(band, first, count)
        found: list[torch.Tensor] = []
        for at in range(start, stop):
            merged = values(at * band, band).view(1, _BLOCK, outputs)
            codes, scales = _quantised(merged)
            decoded = _decoded(codes.permute(2, 0, 1), scales.permute(2, 0, 1).squeeze(2))
            found.append(decoded.to(torch_dtype(self.dtype)).flatten(1).T.flatten())
        return torch.cat(found)[first - start * band :][:count]


def _decoded(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 values (..., 32) of codes (..., 16) and scales (...)."""
    return float4.unpack(codes).mul_(_HALVES[scales.to(torch.int64)].unsqueeze(-1)).mul_(2)


def _quantised(merged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (groups, 16, outputs) and scales (groups, 1, outputs) of (groups, 32, outputs)."""
    blocks = merged.to(torch.float32)
    scales = shared_exponents(blocks.abs().amax(dim=1, keepdim=True), _HIGHEST)
    return float4.pack(blocks / POWERS[scales.to(torch.int64)], dim=1), scales


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """The MXFP4 experts of a checkpoint; see `Find`."""
    found: list[Codec] = []
    for name, codes in tensors.items():
        if name.endswith("_scales") and name.removesuffix("_scales") + "_blocks" not in tensors:
            raise leftover(codes, "the checkpoint has no blocks that it belongs to")
        if not name.endswith("_blocks"):
            continue
        owner = name.removesuffix("_blocks")
        scales = part(tensors, f"{owner}_scales", owner)
        check_dtype(codes, "U8")
        check_dtype(scales, "U8")
        if len(codes.shape) != 4 or codes.shape[3] != _BYTES or not prod(codes.shape):
            raise misfit(codes, f"shape [experts, output, groups, {_BYTES}]", "it is MXFP4")
        if scales.shape != codes.shape[:3]:
            raise misfit(
                scales,
                f"shape {list(codes.shape[:3])}",
                f"{name!r} has shape {list(codes.shape)}",
            )
        if owner in tensors:
            raise leftover(codes, f"the checkpoint also holds {owner!r} unquantised")
        found.append(MxFp4(owner, model_dtype(config), {"codes": codes, "scales": scales}))
    return found
