"""Scales that are powers of two, stored as one byte of exponent (E8M0 of the OCP MX formats)."""

from __future__ import annotations

import torch

# A byte is the exponent field of a float32; 0 stands for 2^-127, which float32 keeps as a
# subnormal. 255 is NaN by the specification; transformers and compressed-tensors read it as 2^128,
# infinity in float32, and so it reads here.
_POWERS = (torch.arange(256, dtype=torch.int32) << 23).index_fill(0, torch.tensor([0]), 0x400000)
POWERS = _POWERS.view(torch.float32)


def as_float(scales: torch.Tensor) -> torch.Tensor:
    """Stored scales as float32: bytes as exponents, float dtypes widened."""
    if scales.dtype == torch.uint8:
        return POWERS[scales.to(torch.int64)]
    return scales.to(torch.float32)
