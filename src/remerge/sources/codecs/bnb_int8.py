"""bitsandbytes 8-bit tensors (LLM.int8(), arXiv:2208.07339): one scale for each row.

``value = code * SCB[row] * (1/127)`` in float32 from left to right, as `int8_vectorwise_dequant` of
bitsandbytes/_ops.py computes it, rounded to the dtype that the model runs in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Read, Values
from remerge.sources.dtypes import torch_dtype

_RECIPROCAL = 7.874015718698502e-3

# Elements quantised at once, in whole rows.
_PIECE = 2**20


@dataclass(frozen=True)
class Int8:
    """A matrix quantised by ``bitsandbytes.functional.int8_vectorwise_quant``.

    Parts: ``codes`` I8 (rows, columns), ``scales`` F32 (rows,) and perhaps ``weight_format``.
    """

    name: str
    dtype: str
    parts: Mapping[str, StoredTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts["codes"].shape

    @property
    def format(self) -> str:
        return "bitsandbytes int8"

    @property
    def rewritten(self) -> frozenset[str]:
        return frozenset({"codes", "scales"})

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        width = self.shape[1]
        row = first // width
        scales = read(self.parts["scales"], row, -(-(first + count) // width) - row)
        spread = scales.repeat_interleave(width)[first % width :][:count]
        values = read(self.parts["codes"], first, count) * spread * _RECIPROCAL
        return values.to(torch_dtype(self.dtype))

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
        width = self.shape[1]
        found: list[torch.Tensor] = [torch.empty(0, dtype=torch_dtype(self.parts[role].dtype))]
        if role == "scales":
            start, stop = first * width, (first + count) * width
        else:
            start, stop = first, first + count
        step = max(_PIECE // width, 1) * width
        for at in range(start // width * width, -(-stop // width) * width, step):
            size = min(step, -(-stop // width) * width - at)
            rows = values(at, size).to(torch.float32).view(-1, width)
            scales = rows.abs().amax(dim=1)
            if role == "scales":
                found.append(scales)
            else:
                codes = (rows * (127.0 / scales.unsqueeze(-1))).round_()
                # A row of zeros gives 0 * inf; what NaN becomes as an integer is not defined.
                codes = codes.nan_to_num_(nan=0.0).to(torch.int8).view(-1)
                found.append(codes[max(start - at, 0) : stop - at])
        return torch.cat(found)
