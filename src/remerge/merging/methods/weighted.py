"""Sums of weighted deltas, which `sum` and `linear` share: exact, and linear in each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from remerge.adapters.deltas import Added, Delta, LowRank, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.method import Joint


@dataclass(frozen=True)
class Weighted:
    """``sum_i w_i delta_i``."""

    name: str
    weights: tuple[float, ...]
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        return {}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        return weighted_sum(deltas, self.weights)


def weighted_sum(deltas: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """``sum_i w_i delta_i`` of deltas (adapters, rows, columns), added up in their order."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def add_weighted(name: str, joint: Joint, weights: tuple[float, ...]) -> tuple[Delta, ...]:
    """Steps that add the weighted deltas: the adapters' own where these are sums and products."""
    touching = [
        (change, weight)
        for change, weight in zip(joint.changes, weights, strict=True)
        if change is not None
    ]
    if len(touching) == 1 and touching[0][1] == 1.0:
        return touching[0][0].steps
    if not joint.additive:
        return (Combined(joint, Weighted(name, weights)),)
    steps = [
        _scaled(step, weight)
        for term, weight in zip(joint.terms, weights, strict=True)
        for step in term.steps
    ]
    return (*joint.replacements, *steps)


def _scaled(step: Delta, weight: float) -> Delta:
    assert isinstance(step, LowRank | Added)
    return step if weight == 1.0 else replace(step, scale=step.scale * weight)
