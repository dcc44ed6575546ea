"""Deltas on a fixed sample of their elements: the same elements on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import BaseMatrix, Delta, Load, Prepared, WholeRows, Window

# About so many elements of a tensor, in so many runs of rows and so many columns at most.
_ELEMENTS = 2**15
_RUNS = 2**7
_COLUMNS = 2**8
# What the two probes of a delta may differ by, relative to its largest value.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Grid:
    """Rows in runs and single columns of a matrix, evenly spread; all of a small one."""

    runs: tuple[range, ...]
    columns: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int]) -> Grid:
        rows, columns = shape
        count = min(columns, _COLUMNS)
        across = torch.arange(count) * columns // count
        length = _ELEMENTS // (_RUNS * count)
        if rows <= _RUNS * length:
            return cls((range(rows),), across, shape)
        starts = (number * (rows - length) // (_RUNS - 1) for number in range(_RUNS))
        return cls(tuple(range(s, s + length) for s in starts), across, shape)

    @property
    def rows(self) -> torch.Tensor:
        return torch.tensor([row for run in self.runs for row in run])

    @property
    def scale(self) -> float:
        """How many elements of the matrix one of the sample stands for."""
        sampled = sum(len(run) for run in self.runs) * self.columns.numel()
        return self.shape[0] * self.shape[1] / sampled


def sampled(steps: Sequence[Delta], grid: Grid, load: Load) -> torch.Tensor | None:
    """What the steps add to the elements of the grid, 1-D float64; None where that depends on the
    base."""
    if any(isinstance(step, WholeRows) and step.whole_rows for step in steps):
        return None
    base = _NoBase(grid.shape)
    try:
        prepared = [step.prepare(base, load) for step in steps]
    except _BaseIsReadError:
        return None
    parts: list[torch.Tensor] = []
    for run in grid.runs:
        window = Window(run, range(grid.shape[1]))
        zeros = torch.zeros(len(run), grid.shape[1], dtype=torch.float64)
        # Values that no 16-bit dtype holds, in case a step rounds.
        others = (torch.arange(zeros.numel(), dtype=torch.float64) % 7 - 3).view(zeros.shape) / 9
        found = _added(steps, zeros, window, load, prepared)
        again = _added(steps, others, window, load, prepared)
        if (found - again).abs().amax() > _ROUNDING * found.abs().amax() + 1e-12:
            return None
        parts.append(found[:, grid.columns].reshape(-1))
    return torch.cat(parts)


def _added(
    steps: Sequence[Delta],
    values: torch.Tensor,
    window: Window,
    load: Load,
    prepared: Sequence[Prepared],
) -> torch.Tensor:
    tile = values.clone()
    for step, numbers in zip(steps, prepared, strict=True):
        step.apply(tile, window, load, numbers)
    return tile - values


class _BaseIsReadError(Exception):
    """A preparation asked for the base's values."""


@dataclass(frozen=True)
class _NoBase:
    """A base that has a shape and no values."""

    shape: tuple[int, int]
    dtype: torch.dtype = torch.float32

    def rows(self, rows: range) -> torch.Tensor:
        raise _BaseIsReadError

    def other(self, tensor: str) -> BaseMatrix:
        raise _BaseIsReadError
