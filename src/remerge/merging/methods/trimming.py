"""Keeping the largest values of every delta: thresholds found exactly, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

from remerge.adapters.deltas import Prepared, Window
from remerge.merging.combined import Deltas
from remerge.merging.selection import Cut, largest

# Whether a share is one of every tensor, or of all changed tensors together.
Measured = Literal["tensor", "model"]

# How many of so many values are to be taken.
Count = Callable[[int], int]


def cuts(deltas: Deltas, counts: Sequence[Count], measured: Measured, key: str) -> torch.Tensor:
    """For each adapter the cut that takes its ``counts[i](elements)`` largest magnitudes: int64
    (adapters, 2), key and last position. ``key`` names the measurement, which is made once for a
    whole model."""
    joint = deltas.combined.joint
    if measured == "model":
        return joint.scope.once(key, lambda: _of_model(deltas, counts))[joint.tensor]
    wanted = [count(deltas.elements) for count in counts]
    return _as_tensor(largest(lambda: _magnitudes(deltas, 0), wanted), 0)


def taken(delta: torch.Tensor, window: Window, columns: int, cut: torch.Tensor) -> torch.Tensor:
    """Which values of a window (rows, columns) of a delta its cut takes, as booleans."""
    first = window.rows.start * columns + window.cols.start
    return Cut(int(cut[0]), int(cut[1])).taken(delta.abs(), first)


def keep_largest(
    deltas: torch.Tensor, window: Window, columns: int, prepared: Prepared
) -> torch.Tensor:
    """The deltas with all values set to zero that ``prepared["cuts"]`` leave, in place."""
    for delta, cut in zip(deltas, prepared["cuts"], strict=True):
        delta *= taken(delta, window, columns, cut)
    return deltas


def _magnitudes(deltas: Deltas, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    adapters, _, columns = deltas.shape
    for window, values in deltas.blocks():
        yield start + window.rows.start * columns, values.abs_().view(adapters, -1)


def _as_tensor(found: Sequence[Cut], start: int) -> torch.Tensor:
    return torch.tensor([[cut.key, cut.last - start] for cut in found], dtype=torch.int64)


def _of_model(deltas: Deltas, counts: Sequence[Count]) -> dict[str, torch.Tensor]:
    """The cuts over all tensors, in the order of their names, told for each from its own start."""
    members = sorted(deltas.everywhere(), key=lambda member: member.combined.joint.tensor)
    starts: dict[str, int] = {}
    total = 0
    for member in members:
        starts[member.combined.joint.tensor] = total
        total += member.elements

    def blocks() -> Iterator[tuple[int, torch.Tensor]]:
        for member in members:
            yield from _magnitudes(member, starts[member.combined.joint.tensor])

    found = largest(blocks, [count(total) for count in counts])
    return {name: _as_tensor(found, start) for name, start in starts.items()}
