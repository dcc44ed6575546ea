"""Angles between deltas: inner products measured once, of a whole tensor or of every row."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from remerge.adapters.deltas import Window


def products(blocks: Iterable[torch.Tensor], by_row: bool) -> torch.Tensor:
    """Inner products of deltas with each other, float64: (1, adapters, adapters), or one such
    matrix for each row. ``blocks`` are their rows in order, (adapters, rows, columns)."""
    found: list[torch.Tensor] = []
    for deltas in blocks:
        rows = deltas.transpose(0, 1) if by_row else deltas.flatten(1).unsqueeze(0)
        found.append((rows @ rows.transpose(1, 2)).cpu())
    whole = torch.cat(found)
    return whole if by_row else whole.sum(0, keepdim=True)


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
