"""Low-rank deltas of one block in common coordinates, and how two of them lie to each other.

The factors of all adapters are written in one orthonormal basis of each side (one QR for all of
them), after which everything is arithmetic on matrices as small as the ranks: no delta is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# torch ships no types for these.
_LINALG: Any = torch.linalg
# Singular values below this share of the largest are rounding noise of the factors.
_NOISE = 1e-10
# Rows that one QR takes at a time: a factor may be as long as a vocabulary.
_ROWS = 2**14


@dataclass(frozen=True)
class Directions:
    """A delta ``left @ diag(values) @ right.T``: its singular value decomposition, the singular
    vectors in the common coordinates; ``left`` (k, r), ``values`` (r,), ``right`` (k', r)."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    @property
    def norm(self) -> float:
        """The Frobenius norm of the delta."""
        return float(_LINALG.vector_norm(self.values))

    @property
    def energy(self) -> float:
        """The norm of ``D.T @ D``."""
        return float(_LINALG.vector_norm(self.values.square()))

    @property
    def spread(self) -> float:
        """How many directions of equal size the delta counts as, 1 to its rank."""
        return (self.norm**2 / self.energy) ** 2


@dataclass(frozen=True)
class Spaces:
    """Two subspaces, by the cosines of their principal angles.

    ``overlap`` is the mean squared cosine over the angles of the smaller one, ``largest`` the
    largest cosine. In ``shared`` every direction counts by its energy: the cosine of ``D.T @ D``
    and ``E.T @ E`` (row spaces; of ``D @ D.T`` and ``E @ E.T`` for columns), which is
    ``|D E.T|^2 / (|D D.T| |E E.T|)``; 1 for equal energies along equal directions, 0 for none in
    common.
    """

    overlap: float
    largest: float
    shared: float


@dataclass(frozen=True)
class Meeting:
    """How two deltas ``D`` and ``E`` lie to each other: ``<D, E>`` and both of their spaces."""

    product: float
    rows: Spaces
    columns: Spaces


def directions(
    left: torch.Tensor, right: torch.Tensor, spans: Sequence[slice]
) -> tuple[Directions, ...]:
    """The deltas ``left[:, span] @ right[:, span].T`` of a block, ``left`` (rows, k) and ``right``
    (columns, k) in float64."""
    down, across = _triangle(left), _triangle(right)
    return tuple(_decomposed(down[:, span], across[:, span]) for span in spans)


def _triangle(factor: torch.Tensor) -> torch.Tensor:
    """R of the thin QR, block by block: the factor's columns in an orthonormal basis."""
    found: torch.Tensor | None = None
    for first in range(0, factor.shape[0], _ROWS):
        block = factor[first : first + _ROWS]
        stacked = block if found is None else torch.cat((found, block))
        found = _LINALG.qr(stacked, mode="r")[1]
    assert found is not None
    return found


def _decomposed(left: torch.Tensor, right: torch.Tensor) -> Directions:
    """The decomposition of ``left @ right.T`` for thin matrices."""
    left_q, left_r = _LINALG.qr(left)
    right_q, right_r = _LINALG.qr(right)
    u, values, vt = _LINALG.svd(left_r @ right_r.T, full_matrices=False)
    rank = int((values > _NOISE * values[0]).sum())
    return Directions(left_q @ u[:, :rank], values[:rank], right_q @ vt[:rank].T)


def meet(one: Directions, other: Directions) -> Meeting:
    """Two deltas of one block, neither of them zero."""
    rows, columns = one.right.T @ other.right, one.left.T @ other.left
    sizes = torch.outer(one.values, other.values)
    return Meeting(
        float((columns * rows * sizes).sum()),
        _spaces(rows, sizes, one, other),
        _spaces(columns, sizes, one, other),
    )


def _spaces(
    cosines: torch.Tensor, sizes: torch.Tensor, one: Directions, other: Directions
) -> Spaces:
    """From the products (r, r') of the singular vectors of one side."""
    return Spaces(
        float(cosines.square().sum()) / min(cosines.shape),
        float(_LINALG.svdvals(cosines)[0]),
        float((cosines * sizes).square().sum()) / (one.energy * other.energy),
    )


def by_chance(one: Directions, other: Directions, dimension: int) -> float:
    """The ``shared`` to expect of random directions in a space of so many dimensions."""
    return min(1.0, (one.spread * other.spread) ** 0.5 / dimension)
