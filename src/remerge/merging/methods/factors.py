"""Combinations that need no more of two long factors than a small matrix between them.

With all adapters' factors side by side, ``L (m, K)`` and ``R (K, n)``, a method gives the core
``C (K, K)`` of ``W' = W + L @ C @ R``. It sees the triangles of their QR decompositions alone,
``L = Q_L T_L`` and ``R.T = Q_R T_R``: lengths, angles and singular values are those of the
triangles. Nothing as large as a delta exists, and only ``C`` is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch.nn import functional

from remerge.adapters.deltas import BaseMatrix, Factor, Load, LowRank, Prepared, Window, overlap
from remerge.merging.methods.blocks import Block, pieces

# Singular values below this share of the largest are rounding errors.
NEGLIGIBLE = 1e-12
# K x K matrices that a core and its decompositions take at once, LAPACK's room among them.
_SQUARES = 24
_PIECES = 2**18 * 4


class CoreRule(Protocol):
    """A method on factors."""

    @property
    def name(self) -> str:
        """What plans call it."""
        ...

    def rank(self, block: Block) -> int:
        """The most that the combination has."""
        ...

    def core(self, block: Block, left: torch.Tensor, right: torch.Tensor) -> Core:
        """``C (K, K)`` from the triangles of ``L`` and of ``R.T``, each (at most K, K)."""
        ...


# A small matrix (K, K) as the product of one or two.
Core = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Cored:
    """``W[block] += L @ C @ R``; its preparations are the one or two matrices whose product C is,
    ``core.0`` and ``core.1``."""

    block: Block
    rule: CoreRule
    stage: ClassVar[int] = 3

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def rank(self) -> int:
        return self.rule.rank(self.block)

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for part in self.block.parts for factor in part.step.factors)

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the preparation, the adapters' own factors apart."""
        return bytes_for(self.block)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        core = self.rule.core(self.block, *triangles(self.block, load))
        return {f"core.{place}": matrix.contiguous() for place, matrix in enumerate(core)}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        block = self.block
        rows = overlap(window.rows, block.row, block.height)
        cols = overlap(window.cols, block.col, block.width)
        if rows is None or cols is None:
            return
        mixed = block.left(range(rows[1].start, rows[1].stop), load).to(tile.device)
        for matrix in _core_of(prepared):
            mixed = mixed @ matrix.to(tile.device)
        wide = range(cols[1].start, cols[1].stop)
        for part, span in zip(block.parts, block.spans, strict=True):
            met = overlap(wide, part.col, part.step.right.shape[1])
            if met is not None:
                first = cols[0].start
                reached = slice(first + met[0].start, first + met[0].stop)
                tile[rows[0], reached].addmm_(mixed[:, span], load(part.step.right)[:, met[1]])

    def low_rank(self, load: Load, prepared: Prepared) -> LowRank:
        first, *rest = _core_of(prepared)
        left = self.block.left(range(self.block.height), load).cpu() @ first
        right = self.block.right(range(self.block.width), load).cpu()
        for matrix in rest:
            right = right @ matrix.T
        return as_low_rank(self.block, left, right.T, self.rank)


def _core_of(prepared: Prepared) -> list[torch.Tensor]:
    return [prepared[f"core.{place}"] for place in range(len(prepared))]


def as_low_rank(block: Block, left: torch.Tensor, right: torch.Tensor, rank: int) -> LowRank:
    """A step that adds ``left @ right`` at a block's place, with zeros up to this rank."""
    left, right = padded(left, right, rank)
    return LowRank(
        Factor((block.height, rank), lambda: left),
        Factor((rank, block.width), lambda: right),
        1.0,
        block.row,
        block.col,
        block.turned,
    )


def padded(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a product with zeros up to this rank: a matrix may turn out to have less."""
    more = rank - left.shape[1]
    return functional.pad(left, (0, more)), functional.pad(right, (0, 0, 0, more))


def bytes_for(block: Block) -> int:
    """Peak bytes of what is done to the triangles of a block."""
    return 8 * (_SQUARES * block.rank**2 + _PIECES)


def triangles(block: Block, load: Load) -> tuple[torch.Tensor, torch.Tensor]:
    """The triangles of the QR decompositions of ``L`` and of ``R.T``."""
    rows, cols = pieces(block.height, block.rank), pieces(block.width, block.rank)
    return (
        triangle(block.left(piece, load) for piece in rows),
        triangle(block.right(piece, load) for piece in cols),
    )


def triangle(blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    """The triangle (at most K, K) of a tall matrix that comes in blocks of rows (rows, K)."""
    found: torch.Tensor | None = None
    for rows in blocks:
        values = rows.cpu()
        values = values if found is None else torch.cat((found, values))
        found = cast(Any, torch.linalg).qr(values, mode="r")[1]
    assert found is not None
    return found


def decomposed(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``U (m, k)``, ``S (k)``, ``V.T (k, n)`` of the singular values that are not negligible."""
    left, values, right = cast(Any, torch.linalg).svd(matrix, full_matrices=False)
    kept = values > NEGLIGIBLE * values[:1]
    return left[:, kept], values[kept], right[kept]


def inverse(triangle: torch.Tensor) -> torch.Tensor:
    """The pseudo-inverse (K, at most K): with it ``L @ inverse = Q_L``, as far as L reaches."""
    left, values, right = decomposed(triangle)
    return (right.T / values) @ left.T


def nearest_isometry(columns: torch.Tensor) -> torch.Tensor:
    """``U @ V.T`` of a matrix ``U S V.T``: the orthonormal columns that are nearest to its own
    (Procrustes)."""
    left, _, right = decomposed(columns)
    return left @ right


def task_singular_vectors(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], kept: int
) -> torch.Tensor:
    """TSV-Merge of matrices (m, n): of each the ``kept`` largest singular values, their vectors
    made orthogonal over all matrices (Gargiulo et al., arXiv:2412.00081, section 4)."""
    lefts: list[torch.Tensor] = []
    rights: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for delta, weight in zip(deltas, weights, strict=True):
        left, singular, right = decomposed(delta)
        lefts.append(left[:, :kept])
        rights.append(right[:kept].T)
        values.append(singular[:kept] * weight)
    left, right = nearest_isometry(torch.cat(lefts, 1)), nearest_isometry(torch.cat(rights, 1))
    return (left * torch.cat(values)) @ right.T
