"""Scales that are powers of two, stored as one byte of exponent (E8M0 of the OCP MX formats)."""

from __future__ import annotations

import torch

# A byte is the exponent field of a float32; 0 stands for 2^-127, which float32 keeps as a
# subnormal. 255 is NaN by the specification; the libraries that these formats come from read it
# as 2^128, infinity in float32, and so it reads here.
_POWERS = (torch.arange(256, dtype=torch.int32) << 23).index_fill(0, torch.tensor([0]), 0x400000)
POWERS = _POWERS.view(torch.float32)


def as_float(scales: torch.Tensor) -> torch.Tensor:
    """Stored scales as float32: bytes as exponents, float dtypes widened."""
    if scales.dtype == torch.uint8:
        return POWERS[scales.to(torch.int64)]
    return scales.to(torch.float32)


def shared_exponents(largest: torch.Tensor, highest: int) -> torch.Tensor:
    """The bytes for blocks whose largest magnitudes are ``largest`` (float32).

    ``highest`` is the exponent of the element format's largest number: 2 for float4, 8 for float8.
    The rule is `generate_mx_scales` of compressed_tensors quantization/utils/mxfp_utils.py: the
    exponent of the largest magnitude, the next one from 1.75 up, less ``highest``; what then lies
    beyond the largest code is saturated.
    """
    exponents = (largest.contiguous().view(torch.int32) + 0x200000) >> 23
    return (exponents - highest).clamp_(0, 255).to(torch.uint8)
