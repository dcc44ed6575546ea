"""Small products of a whole base weight, read once in blocks."""

from __future__ import annotations

import torch

from remerge.adapters.blocks import in_blocks
from remerge.adapters.deltas import BaseMatrix


def projected(base: BaseMatrix, right: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """``right^T W (r, in)`` for ``right (out, r)`` in float64; ``transposed``: the base is
    ``W^T (in, out)``."""
    inputs = base.shape[0 if transposed else 1]
    found = torch.zeros(right.shape[1], inputs, dtype=torch.float64, device=right.device)

    def add(rows: range, block: torch.Tensor) -> None:
        if transposed:
            found[:, rows.start : rows.stop] = (block @ right).T
        else:
            found.addmm_(right[rows.start : rows.stop].T, block)

    in_blocks(base, add)
    return found


def whole(base: BaseMatrix) -> torch.Tensor:
    """The base's values in float32 on the CPU, for a decomposition."""
    found = torch.empty(base.shape, dtype=torch.float32)

    def put(rows: range, block: torch.Tensor) -> None:
        found[rows.start : rows.stop] = block

    in_blocks(base, put)
    return found


def svd_bytes(shape: tuple[int, int]) -> int:
    """Peak bytes of `whole` and its singular value decomposition in float32: the matrix and its
    copy, both bases, LAPACK's work space, and a block in float64."""
    rows, cols = shape
    small = min(rows, cols)
    return 4 * (2 * rows * cols + 2 * (rows + cols) * small + 8 * small * small) + 8 * 2**20
