"""Four-bit floats (E2M1: a sign, two bits of exponent, one of mantissa), two to a byte."""

from __future__ import annotations

import torch

# The lower half of a byte comes first.
_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_SIGNED = torch.cat([_VALUES, -_VALUES])
# The two float32 of each byte, looked up as one number of 64 bits.
_PAIRS = (
    torch.stack([_SIGNED.repeat(16), _SIGNED.repeat_interleave(16)], dim=1)
    .view(torch.int64)
    .flatten()
)

LARGEST = 6.0


def unpack(codes: torch.Tensor) -> torch.Tensor:
    """The values of bytes (..., n) as float32 (..., 2n)."""
    pairs = _PAIRS.index_select(0, codes.flatten().to(torch.int32))
    return pairs.view(torch.float32).view(*codes.shape[:-1], 2 * codes.shape[-1])


def pack(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Values, scaled already, as bytes, half as many along ``dim``: the nearest float, ties to
    even.

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
    codes = codes.movedim(dim, -1)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).movedim(-1, dim)
