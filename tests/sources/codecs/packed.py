"""A plain writer and reader of packed integers in numpy, from the description of the formats.

It takes codes one bit at a time, and so shares nothing with what it checks.
"""

from __future__ import annotations

import numpy as np
import torch


def pack(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Integers (n, columns) as int32 words (n * bits / 32, columns), lowest bits first."""
    stream = ((codes[:, None] >> np.arange(bits)[None, :, None]) & 1).reshape(-1, codes.shape[1])
    stream = np.pad(stream, ((0, -len(stream) % 32), (0, 0)))
    words = stream.reshape(-1, 32, codes.shape[1]).astype(np.uint64)
    packed = (words << np.arange(32, dtype=np.uint64)[None, :, None]).sum(axis=1)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


def in_order(codes: np.ndarray) -> np.ndarray:
    """Columns in the order in which AWQ packs each eight of them."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape)


def linear(
    codes: np.ndarray, zeros: np.ndarray, scales: torch.Tensor, group: np.ndarray
) -> torch.Tensor:
    """(out, in) of codes (in, out), zeros and scales (groups, out): each product rounded once."""
    difference = torch.from_numpy(codes.astype(np.float64) - zeros[group])
    exact = difference * scales.double()[torch.from_numpy(group)]
    # A product of an 8-bit and an 11-bit number is exact in float32, so this rounds once.
    return exact.float().to(scales.dtype).T.contiguous()
