"""Angles between deltas: inner products measured once, of a whole tensor or of every row."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from remerge.adapters.deltas import Window


def products(blocks: Iterable[torch.Tensor], rows: int | None = None) -> torch.Tensor:
    """Inner products of deltas with each other, float64: (1, adapters, adapters), or one such
    matrix for each of so many ``rows``. ``blocks`` are the deltas' rows in order, (adapters, rows,
    columns)."""
    found: torch.Tensor | None = None
    first = 0
    for deltas in blocks:
        count, here = deltas.shape[:2]
        # In one piece: small ones between the blocks would keep their memory from being reused.
        if found is None:
            found = torch.zeros(rows or 1, count, count, dtype=torch.float64)
        if rows is None:
            flat = deltas.flatten(1)
            found[0] += (flat @ flat.T).cpu()
        else:
            by_row = deltas.transpose(0, 1)
            found[first : first + here] = by_row @ by_row.transpose(1, 2)
            first += here
    assert found is not None
    return found


def norms_of(products: torch.Tensor) -> torch.Tensor:
    """The deltas' norms, (..., adapters)."""
    return products.diagonal(dim1=-2, dim2=-1).sqrt()


def spherical(t: float, cosine: torch.Tensor, line: torch.Tensor) -> torch.Tensor:
    """How much of two vectors is in the point between them on the sphere, at ``t`` from 0 to 1:
    ``sin((1 - t) angle) / sin(angle)`` and ``sin(t angle) / sin(angle)`` (Shoemake 1985), and
    ``1 - t`` and ``t`` where they lie on one ``line``; (..., 2) of cosines (...)."""
    angle = torch.acos(torch.where(line, 0.0, cosine))
    first = torch.where(line, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(line, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack([first, second], -1)


def of_rows(numbers: torch.Tensor, window: Window, device: torch.device) -> torch.Tensor:
    """The numbers of a window's rows, (rows, 1); (1, 1) of those of a whole tensor."""
    found = numbers if len(numbers) == 1 else numbers[window.rows.start : window.rows.stop]
    return found.unsqueeze(1).to(device)
