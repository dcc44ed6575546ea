"""Rows of a weight turned by block-diagonal rotations (OFT, BOFT).

A rotation comes from a skew-symmetric matrix by Cayley's formula, ``(I - S) @ inv(I + S)``
(arXiv:2306.07280).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.regions import Index

# torch ships no types for linalg.solve.
_LINALG: Any = torch.linalg
_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class Rotation:
    """Block-diagonal ``(n, n)`` with blocks ``(size, size)`` stacked in ``(n, size)``, or in
    ``(size, size)`` where all are the same one.

    ``order``: the diagonal's place for each input, where these are permuted first and put back
    afterwards.
    """

    blocks: Factor
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rotated:
    """Multiplies rows by each rotation's transpose in turn, then each row by its ``scale (out,
    1)``."""

    rotations: tuple[Rotation, ...]
    scale: Factor | None = None
    band: int = 1
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        blocks = tuple(rotation.blocks for rotation in self.rotations)
        return blocks if self.scale is None else (*blocks, self.scale)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        place = in_order(cols)
        values = block[:, place]
        for rotation in self.rotations:
            values = _turned(values, rotation, load(rotation.blocks))
        if self.scale is not None:
            values = values * load(self.scale)[span_of(rows)]
        block[:, place] = values


def _turned(values: torch.Tensor, rotation: Rotation, blocks: torch.Tensor) -> torch.Tensor:
    high, wide = values.shape
    size = blocks.shape[1]
    order = None if rotation.order is None else torch.as_tensor(rotation.order)
    if order is not None:
        values = values[:, order.argsort()]
    stacked = blocks.reshape(-1, size, size).transpose(1, 2).expand(wide // size, size, size)
    parts = values.reshape(high, wide // size, size).transpose(0, 1)
    values = torch.bmm(parts, stacked).transpose(0, 1).reshape(high, wide)
    return values if order is None else values[:, order]


def in_order(cols: Index) -> slice | torch.Tensor:
    """What selects all of a parameter's columns in their own order from a block that holds them in
    this one."""
    positions = np.asarray(cols)
    if (np.diff(positions) == 1).all():
        return slice(None)
    return torch.as_tensor(np.argsort(positions))


def stacked(
    count: int, size: int, make: Callable[[slice], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """Reads ``count`` blocks ``(size, size)``, a few at a time: making them takes several times
    their own memory."""
    step = max(1, _BLOCK_ELEMENTS // size**2)

    def read() -> torch.Tensor:
        found = torch.empty(count, size, size, dtype=torch.float64)
        for first in range(0, count, step):
            found[first : first + step] = make(slice(first, first + step))
        return found

    return read


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """``(I - S) @ inv(I + S)`` of each skew-symmetric matrix of ``(n, size, size)``."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype)
    return _LINALG.solve(one + skew, one - skew, left=False)
