"""Keeping the largest values of every delta: thresholds found exactly, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

from remerge.adapters.deltas import Prepared, Window
from remerge.merging.combined import Deltas
from remerge.merging.selection import EVERYTHING, NOTHING, Count, Cut, largest

# Whether a share is one of every tensor, or of all changed tensors together.
Measured = Literal["tensor", "model"]

# How many of so many values are to be taken.
Share = Callable[[int], int]


def cuts(deltas: Deltas, shares: Sequence[Share], measured: Measured) -> torch.Tensor:
    """Cuts that take the ``shares[i](elements)`` largest magnitudes of a delta: int64, key and last
    position of each.

    With several shares for each adapter, those of the first come first. A whole model is measured
    once for all its tensors.
    """
    joint = deltas.combined.joint
    if measured == "model":
        return joint.scope.once("cuts", lambda: _of_model(deltas, shares))[joint.tensor]
    return as_tensor(_find([deltas], shares))


def cuts_of(prepared: Prepared) -> list[Cut]:
    """The cuts of a preparation, in their order."""
    keys, lasts = prepared["cuts"].cpu().numpy().T
    return [Cut(int(key), int(last)) for key, last in zip(keys, lasts, strict=True)]


def position(window: Window, columns: int) -> int:
    """Where a window begins among the elements of its tensor."""
    return window.rows.start * columns + window.cols.start


def keep_largest(
    deltas: torch.Tensor, window: Window, columns: int, prepared: Prepared
) -> torch.Tensor:
    """The deltas with all values set to zero that ``prepared["cuts"]`` leave, in place."""
    first = position(window, columns)
    for cut, delta in zip(cuts_of(prepared), deltas, strict=True):
        cut.keep(delta, first)
    return deltas


def _find(members: Sequence[Deltas], shares: Sequence[Share]) -> list[Cut]:
    """The cuts over all these tensors one after the other; no pass over those that need none."""
    elements = sum(member.elements for member in members)
    adapters = members[0].shape[0]
    each = len(shares) // adapters
    found: dict[int, Cut] = {}
    for number, share in enumerate(shares):
        count = share(elements)
        absent = not any(member.combined.joint.touching[number // each] for member in members)
        if count <= 0 or absent:
            found[number] = NOTHING
        elif count >= elements:
            found[number] = EVERYTHING

    def blocks() -> Iterator[tuple[int, torch.Tensor]]:
        start = 0
        for member in members:
            for window, values in member.blocks():
                yield start + window.rows.start * member.shape[2], values.flatten(1)
            start += member.elements

    left = [number for number in range(len(shares)) if number not in found]
    wanted = [(number // each, _fixed(shares[number](elements))) for number in left]
    found |= dict(zip(left, largest(blocks, wanted), strict=True))
    return [found[number] for number in range(len(shares))]


def _fixed(count: int) -> Count:
    return lambda _: count


def as_tensor(found: Sequence[Cut], start: int = 0) -> torch.Tensor:
    """Cuts as a preparation holds them; positions are told from ``start`` on."""
    return torch.tensor([[cut.key, cut.last - start] for cut in found], dtype=torch.int64)


def _of_model(deltas: Deltas, shares: Sequence[Share]) -> dict[str, torch.Tensor]:
    """The cuts over all tensors, in the order of their names, told for each from its own start."""
    members = sorted(deltas.everywhere(), key=lambda member: member.combined.joint.tensor)
    found = _find(members, shares)
    told: dict[str, torch.Tensor] = {}
    start = 0
    for member in members:
        told[member.combined.joint.tensor] = as_tensor(found, start)
        start += member.elements
    return told
