"""What a cell of the grid is coloured by: figures in bands, each a colour of the style sheet."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from remerge.validation.report.grid import Cell, Grid
from remerge.validation.report.words import figure

# How many colours the style sheet has from little to much.
_STEPS = 7
# The part kept: from turned round, over lost, to kept (the middle), to too much.
_KEPT = (0.0, 0.5, 0.9, 0.98, 1.02, 1.1, 1.5)
_KEPT_WORDS = (
    "below 0",
    "0 to 0.5",
    "0.5 to 0.9",
    "0.9 to 0.98",
    "0.98 to 1.02",
    "1.02 to 1.1",
    "1.1 to 1.5",
    "above 1.5",
)
UNKNOWN = "var(--unknown)"


@dataclass(frozen=True)
class Band:
    """One colour, and the figures that have it, in words."""

    colour: str
    words: str


@dataclass(frozen=True)
class Measure:
    """One way to colour the grid: ``bands`` are its legend, ``colours`` those of the cells."""

    key: str
    title: str
    about: str
    bands: tuple[Band, ...]
    colours: tuple[str, ...]


def measures_of(grid: Grid) -> tuple[Measure, ...]:
    """All ways to colour this grid for which there are figures."""
    found = (
        _sequential(
            grid,
            "delta",
            "Delta norm",
            "Frobenius norm of what the adapters add, in weights' own units.",
            lambda cell: cell.figures.delta,
        ),
        _sequential(
            grid,
            "relative",
            "Delta relative to the base",
            "Frobenius norm of what the adapters add over that of the base's tensor.",
            _relative,
        ),
        _kept(grid),
        _sequential(
            grid,
            "conflict",
            "Conflict of adapters",
            "What two adapters share and do not agree on, from 0 to 1: of the worst pair in each "
            "module."
            + (
                " Only the worst modules of every pair are known: the others may conflict less."
                if grid.worst_conflicts_only
                else ""
            ),
            lambda cell: None if cell.meeting is None else cell.meeting.conflict,
        ),
    )
    return tuple(measure for measure in found if measure is not None)


def _relative(cell: Cell) -> float | None:
    delta, base = cell.figures.delta, cell.figures.base
    return delta / base if delta is not None and base else None


def _kept(grid: Grid) -> Measure | None:
    def colour(cell: Cell) -> str:
        kept = cell.figures.kept
        if kept is None or math.isnan(kept):
            return UNKNOWN
        return f"var(--d{bisect_right(_KEPT, kept)})"

    if all(cell.figures.kept is None for cell in grid.cells):
        return None
    bands = [Band(f"var(--d{step})", words) for step, words in enumerate(_KEPT_WORDS)]
    return Measure(
        "kept",
        "Delta kept",
        "The part of the delta that the output has: 1 for all of it, 0 for none, below 0 where it "
        "has the opposite.",
        tuple(bands),
        tuple(map(colour, grid.cells)),
    )


def _sequential(
    grid: Grid, key: str, title: str, about: str, value: Callable[[Cell], float | None]
) -> Measure | None:
    values = [value(cell) for cell in grid.cells]
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    edges = _edges(known)
    steps = len(edges) - 1

    def colour(v: float | None) -> str:
        if v is None or not math.isfinite(v):
            return UNKNOWN
        return _colour(min(max(bisect_right(edges, v) - 1, 0), steps - 1), steps)

    bands = [
        Band(_colour(step, steps), f"{figure(low)} to {figure(high)}")
        for step, (low, high) in enumerate(pairwise(edges))
    ]
    return Measure(key, title, about, tuple(bands), tuple(map(colour, values)))


def _colour(step: int, steps: int) -> str:
    return f"var(--q{step if steps == _STEPS else round((step + 1) * (_STEPS - 1) / (steps + 1))})"


def _edges(values: Sequence[float]) -> list[float]:
    """Where bands begin and end: even steps, or even factors where the values span decades."""
    low, high = min(values), max(values)
    positive = min((v for v in values if v > 0), default=0.0)
    if positive and high / positive > 30:
        factor = (high / positive) ** (1 / _STEPS)
        found = [positive * factor**step for step in range(_STEPS + 1)]
    else:
        found = [low + (high - low) * step / _STEPS for step in range(_STEPS + 1)]
    rounded = sorted({float(f"{edge:.2g}") for edge in found})
    return rounded if len(rounded) > 1 else [low, high]
