"""The low-rank matrix nearest to a difference, by a randomised singular value decomposition.

Halko, Martinsson and Tropp, Finding structure with randomness (arXiv:0909.4061), algorithms 4.4
and 5.1: a few random combinations of the columns span what matters of them, the more so after
power iterations, and the decomposition of what they see is small. The difference is only ever
multiplied, so it is never in memory. What the random numbers and LAPACK give is the same in every
run on one numerical stack.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from remerge.merging.patches import BLOCK
from remerge.merging.streamed import Multiplied

_OVERSAMPLING = 10
# With two, even a difference without any structure is met within 1 % of the least error.
_POWER_ITERATIONS = 2
# With --energy and no --rank: the most that a tensor may take.
LARGEST_RANK = 256


@dataclass(frozen=True)
class Wanted:
    """How much of each difference to keep: at most ``rank``, and with ``energy`` (0 to 1) no more
    than explains that share of the squared norm."""

    rank: int
    energy: float | None = None


@dataclass(frozen=True)
class LowRankFit:
    """``left @ right`` of shapes (rows, rank) and (rank, columns), float64, with the square roots
    of the singular values on either side; ``squares`` are those values' squares."""

    left: torch.Tensor
    right: torch.Tensor
    squares: torch.Tensor
    squared_norm: float

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def cut(self, rank: int) -> LowRankFit:
        """The same with fewer directions, the largest ones."""
        return LowRankFit(
            self.left[:, :rank], self.right[:rank], self.squares[:rank], self.squared_norm
        )


def fit(difference: Multiplied, wanted: Wanted, squared_norm: float) -> LowRankFit:
    """The nearest matrix of the wanted rank to a difference that is not zero."""
    rows, columns = difference.shape
    rank = min(wanted.rank, rows, columns)
    width = min(rank + _OVERSAMPLING, rows, columns)
    generator = torch.Generator().manual_seed(_seed(difference.name))
    sample = torch.randn(columns, width, dtype=torch.float64, generator=generator)
    basis = _orthonormal(difference.times(sample))
    for _ in range(_POWER_ITERATIONS):
        other = _orthonormal(difference.transposed_times(basis))
        del basis  # so that no more than three of its size exist at once
        basis = _orthonormal(difference.times(other))
    # The rows of D that the basis sees, transposed: V S U', where U = basis @ U'.
    right, values, left = _decomposed(difference.transposed_times(basis))
    squares = values.square()
    kept = min(rank, enough(squares, squared_norm, wanted.energy))
    roots = values[:kept].sqrt()
    return LowRankFit(
        (basis @ left[:kept].T) * roots,
        roots[:, None] * right[:, :kept].T,
        squares[:kept],
        squared_norm,
    )


def enough(squares: torch.Tensor, squared_norm: float, energy: float | None) -> int:
    """The fewest singular values whose squares make up this share of the squared norm."""
    if energy is None or squared_norm == 0.0:
        return len(squares)
    reached = torch.cumsum(squares, 0) >= energy * squared_norm
    return int(reached.to(torch.int8).argmax()) + 1 if bool(reached.any()) else len(squares)


def explained(squares: float, squared_norm: float) -> float:
    """The share of ||D||^2 that singular values with these squares explain:
    ``1 - ||D - B A||^2 / ||D||^2`` for the nearest ``B A``."""
    return min(1.0, squares / squared_norm) if squared_norm else 1.0


def relative_error(share: float) -> float:
    """``||D - B A|| / ||D||``."""
    return math.sqrt(max(0.0, 1.0 - share))


def bytes_needed(shape: tuple[int, int], rank: int) -> int:
    """Peak bytes of `fit`, a kept difference apart: a basis, what it is made from, LAPACK's copy of
    that, and a few blocks."""
    width = min(rank + _OVERSAMPLING, *shape)
    return 3 * 8 * width * sum(shape) + 30 * BLOCK


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    # torch types neither of its decompositions.
    qr: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = cast(Any, torch.linalg).qr
    return qr(columns)[0]


def _decomposed(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return cast(Any, torch.linalg).svd(matrix, full_matrices=False)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
