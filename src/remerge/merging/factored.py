"""Changes that are products of factors: an adapter's own, and what a method on factors made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch

from remerge.adapters.deltas import Factor, Load, LowRank, Prepared

# Singular values below this share of the largest are rounding errors.
_NEGLIGIBLE = 1e-12


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


def rounding(
    exact: tuple[torch.Tensor, torch.Tensor], rounded: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """``||L R - L' R'||``, as ``(L - L') R + L' (R - R')``: without cancellation."""
    left, right = exact
    near_left, near_right = (factor.to(torch.float64) for factor in rounded)
    return norm(torch.cat((left - near_left, near_left), 1), torch.cat((right, right - near_right)))


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
