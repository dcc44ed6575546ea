"""Four-bit floats (E2M1: a sign, two bits of exponent, one of mantissa), two to a byte."""

from __future__ import annotations

import torch

# The lower half of a byte comes first.
_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_SIGNED = torch.cat([_VALUES, -_VALUES])
_PAIRS = torch.stack([_SIGNED.repeat(16), _SIGNED.repeat_interleave(16)], dim=1)

LARGEST = 6.0


def unpack(codes: torch.Tensor) -> torch.Tensor:
    """The values of bytes (..., n) as float32 (..., 2n)."""
    return _PAIRS[codes.to(torch.int64)].flatten(-2)


def pack(values: torch.Tensor) -> torch.Tensor:
    """Values (..., 2n), scaled already, as bytes (..., n): the nearest float, ties to even.

    `cast_to_fp4` and `pack_fp4_to_uint8` of compressed_tensors: what rounds to zero from below
    keeps its sign, minus zero itself does not.
    """
    size = values.abs()
    codes = (size > 0.25).to(torch.uint8)
    codes += size >= 0.75
    codes += size > 1.25
    codes += size >= 1.75
    codes += size > 2.5
    codes += size >= 3.5
    codes += size > 5.0
    codes += (values < 0).to(torch.uint8) << 3
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
