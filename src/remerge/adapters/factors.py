"""Adapter tensors as the matrices that deltas are made of, read when needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

from remerge.adapters.deltas import Factor
from remerge.adapters.facts import AdapterFacts

_WIDE = torch.float64
# Enough for the experts' factors that a few threads work on at a time.
_RECENT = 4


def matrix(adapter: AdapterFacts, name: str, shape: tuple[int, int] | None = None) -> Factor:
    """A stored tensor as a matrix of this shape (its own rows, the rest as columns, if None)."""
    stored = adapter.tensors[name].shape
    if shape is None:
        shape = (stored[0], math.prod(stored[1:])) if stored else (1, 1)
    rows, cols = shape

    def read() -> torch.Tensor:
        return adapter.read(name).to(_WIDE).reshape(rows, cols)

    def read_rows(wanted: range) -> torch.Tensor:
        return adapter.read_rows(name, wanted).to(_WIDE).reshape(len(wanted), cols)

    def read_columns(wanted: range) -> torch.Tensor:
        parts = [adapter.read_elements(name, r * cols + wanted.start, len(wanted)) for r in every]
        return torch.stack(parts).to(_WIDE)

    every = range(rows)
    # Rows of the file are rows of the matrix only where the first axis is kept.
    kept = bool(stored) and stored[0] == rows
    return Factor((rows, cols), read, read_rows if kept else None, read_columns if kept else None)


def turned(factor: Factor) -> Factor:
    """The transposed matrix."""
    return Factor(
        (factor.shape[1], factor.shape[0]),
        lambda: factor.read().T.contiguous(),
        _transposed(factor.read_columns),
        _transposed(factor.read_rows),
    )


def _transposed(
    read: Callable[[range], torch.Tensor] | None,
) -> Callable[[range], torch.Tensor] | None:
    return None if read is None else lambda wanted: read(wanted).T


def made(shape: tuple[int, int], read: Callable[[], torch.Tensor]) -> Factor:
    """A matrix computed from stored tensors; ``read`` may return any float dtype."""
    return Factor(shape, lambda: read().to(_WIDE).reshape(shape))


def recent_reader(adapter: AdapterFacts) -> Callable[[str], torch.Tensor]:
    """Reads stored tensors and keeps the last few, of which many experts take a part each."""
    return lru_cache(maxsize=_RECENT)(adapter.read)
