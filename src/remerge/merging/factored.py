"""Changes that are products of factors: an adapter's own, and what a method on factors made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch

from remerge.adapters.deltas import Factor, Load, LowRank, Prepared

# Singular values below this share of the largest are rounding errors.
_NEGLIGIBLE = 1e-12
# Rows of a factor that are at hand at once; part of what the last bits depend on.
_ROWS = 2**12


@runtime_checkable
class Factored(Protocol):
    """A step whose change of its tensor is a product, once it is prepared."""

    @property
    def rank(self) -> int:
        """The most that the product has."""
        ...

    def low_rank(self, load: Load, prepared: Prepared) -> LowRank:
        """The same as a step of an adapter."""
        ...


def as_low_rank(step: Factored, load: Load, prepared: Prepared) -> LowRank:
    """The same as a step of an adapter, as few directions as it has."""
    found = step.low_rank(load, prepared)
    left, right, _ = nearest(found.left.read() * found.scale, found.right.read(), None)
    return replace(found, left=_held(left), right=_held(right), scale=1.0)


def nearest(
    left: torch.Tensor, right: torch.Tensor, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The nearest product of a rank to ``left @ right`` (float64), all directions it has for None;
    with the norm of what it misses.

    The square roots of the singular values stand on either side.
    """
    linalg: Any = torch.linalg
    outer, tall = cast("tuple[torch.Tensor, torch.Tensor]", linalg.qr(left))
    inner, wide = cast("tuple[torch.Tensor, torch.Tensor]", linalg.qr(right.T))
    u, values, v = cast(
        "tuple[torch.Tensor, torch.Tensor, torch.Tensor]",
        linalg.svd(tall @ wide.T, full_matrices=False),
    )
    kept = int((values > _NEGLIGIBLE * values[:1]).sum())
    kept = kept if rank is None else min(kept, rank)
    roots = values[:kept].sqrt()
    return (
        (outer @ u[:, :kept]) * roots,
        roots[:, None] * (v[:kept] @ inner.T),
        float(values[kept:].square().sum().sqrt()),
    )


def joined(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of products as one: factors side by side, those that share a factor once.

    A layer that is stored in several tensors has the same factor in each of them.
    """
    pairs = _merged(pairs, shared=1)
    pairs = _merged(pairs, shared=0)
    return torch.cat([left for left, _ in pairs], 1), torch.cat([right for _, right in pairs])


def norm(left: torch.Tensor, right: torch.Tensor) -> float:
    """``||left @ right||`` without the product."""
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0.0).sqrt())


def rounding(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> float:
    """``||L R - L' R'||`` for both factors rounded to a dtype."""
    # (L - L') R + L' (R - R'): no cancellation hides it.
    across = _both(left, dtype, first=False)
    along = _both(right.T, dtype, first=True)
    return float((across * along).sum().clamp(min=0.0).sqrt())


def _both(columns: torch.Tensor, dtype: torch.dtype, *, first: bool) -> torch.Tensor:
    """The Gram matrix of [X, X - X'] (``first``) or of [X - X', X']."""
    total = torch.zeros(2 * columns.shape[1], 2 * columns.shape[1], dtype=torch.float64)
    for at in range(0, columns.shape[0], _ROWS):
        rows = columns[at : at + _ROWS]
        near = rows.to(dtype).to(torch.float64)
        pair = (rows, rows - near) if first else (rows - near, near)
        both = torch.cat(pair, 1)
        total += both.T @ both
    return total


def _merged(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], shared: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Products with an equal factor (0: left, 1: right) as one, the others added up."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pair in pairs:
        for at, known in enumerate(found):
            if torch.equal(known[shared], pair[shared]):
                total = known[1 - shared] + pair[1 - shared]
                found[at] = (total, pair[1]) if shared else (pair[0], total)
                break
        else:
            found.append(pair)
    return found


def _held(values: torch.Tensor) -> Factor:
    return Factor((values.shape[0], values.shape[1]), lambda: values)
