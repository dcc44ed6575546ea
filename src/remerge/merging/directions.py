"""Low-rank deltas of one block, and how two of them lie to each other, from Gram matrices.

All that is asked of the factors is the inner products of their columns: ``L.T @ L`` and ``R.T @ R``
with the factors of all adapters side by side, one product of matrices for each side. After that
everything is arithmetic on matrices as small as the ranks: no delta is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# torch ships no types for these.
_LINALG: Any = torch.linalg
# Directions below this share of the largest count as none. A Gram matrix squares it, and leaves
# the smallest that stay six digits.
_NOISE = 1e-5


@dataclass(frozen=True)
class Directions:
    """The singular value decomposition of a delta ``L[:, span] @ R[:, span].T``.

    Its singular vectors are ``L[:, span] @ left`` and ``R[:, span] @ right``, ``left`` and
    ``right`` (k, r); ``values`` (r,).
    """

    span: slice
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
    """The deltas of a block from the Gram matrices ``L.T @ L`` and ``R.T @ R`` (k, k), float64."""
    return tuple(_decomposed(left[span, span], right[span, span], span) for span in spans)


def _decomposed(left: torch.Tensor, right: torch.Tensor, span: slice) -> Directions:
    """The decomposition of ``L @ R.T`` from the Gram matrices of L and R alone."""
    left_root, left_back = _root(left)
    right_root, right_back = _root(right)
    u, values, vt = _LINALG.svd(left_root @ right_root.T, full_matrices=False)
    rank = int((values > _NOISE * values[:1]).sum())
    return Directions(span, left_back @ u[:, :rank], values[:rank], right_back @ vt[:rank].T)


def _root(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``T`` (r, k) with ``T.T @ T = L.T @ L``, and ``X`` (k, r) that makes the columns of ``L @ X``
    orthonormal: ``L = (L @ X) @ T``."""
    squares, vectors = _LINALG.eigh(gram)
    kept = squares > max(_NOISE**2 * float(squares[-1]), 0.0)
    sizes, vectors = squares[kept].sqrt(), vectors[:, kept]
    return (vectors * sizes).T, vectors / sizes


def meet(one: Directions, other: Directions, left: torch.Tensor, right: torch.Tensor) -> Meeting:
    """Two deltas of one block, neither of them zero, with the Gram matrices of the block."""
    columns = one.left.T @ left[one.span, other.span] @ other.left
    rows = one.right.T @ right[one.span, other.span] @ other.right
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
