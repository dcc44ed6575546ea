"""A model as a grid, layers by modules: in every cell what the adapters changed there, and how
much of it the output kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from remerge.artefacts.advice import LEAST_KEPT, MOST_EXCESS
from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.manifest import RetentionReport
from remerge.artefacts.test_result import WeightsResult
from remerge.validation.report.naming import Place, place_of, stem_names


@dataclass(frozen=True)
class Tensor:
    """What is known of one tensor: norms of base and delta, the part kept, the noise added, worst
    error in units in the last place, and the error's size over that of one rounding."""

    elements: int
    base: float | None = None
    delta: float | None = None
    kept: float | None = None
    noise: float | None = None
    worst: float | None = None
    excess: float | None = None

    @property
    def fails(self) -> bool:
        """Whether part of the delta is not there, or there too often (rounding may have lost it,
        or the merge is wrong), or errors are larger than rounding makes them."""
        lost = self.kept is not None and not abs(1.0 - self.kept) <= 1.0 - LEAST_KEPT
        return lost or (self.excess is not None and not self.excess <= MOST_EXCESS)


@dataclass(frozen=True)
class Meeting:
    """How far two adapters are in each other's way in one module (docs/conflicts.md)."""

    pair: str
    conflict: float
    shared: float | None
    cosine: float | None


@dataclass(frozen=True)
class Cell:
    """One module of one layer: where it is drawn, its ``tensors``, their figures together, and the
    pair of adapters that conflicts most there. ``failing`` names tensors whose weights fail."""

    row: int
    column: int
    tensors: tuple[str, ...]
    figures: Tensor
    failing: tuple[str, ...]
    meeting: Meeting | None


@dataclass(frozen=True)
class Grid:
    """``rows`` are modules, ``columns`` layers (None: outside of them). ``unchanged`` counts
    measured tensors that are left out, as no delta touches them. ``worst_conflicts_only`` says that
    modules without a conflict may have one."""

    rows: tuple[str, ...]
    columns: tuple[int | None, ...]
    cells: tuple[Cell, ...]
    origin: str
    unchanged: int
    worst_conflicts_only: bool

    @property
    def has_conflicts(self) -> bool:
        return any(cell.meeting is not None for cell in self.cells)

    @property
    def failing(self) -> tuple[str, ...]:
        """All tensors whose weights fail."""
        return tuple(name for cell in self.cells for name in cell.failing)


def of_comparison(weights: WeightsResult) -> dict[str, Tensor]:
    """The tensors of a comparison."""
    return {
        name: Tensor(t.elements, t.base_norm, t.delta_norm, t.kept, t.noise, t.worst, t.excess)
        for name, t in weights.tensors.items()
    }


def of_manifest(report: RetentionReport) -> dict[str, Tensor]:
    """The tensors that a merge measured while it was made."""
    return {
        name: Tensor(t.elements, delta=t.delta, kept=t.kept, noise=t.noise)
        for name, t in report.tensors.items()
    }


def meetings_of(report: ConflictReport, names: Sequence[str]) -> dict[str, list[Meeting]]:
    """The conflicts by tensor; ``names`` are those of the adapters."""
    found: dict[str, list[Meeting]] = {}
    for pair in report.pairs:
        told = " + ".join(names[number - 1] for number in pair.adapters)
        for module in pair.modules:
            if module.conflict is not None:
                # Parts of fused tensors have their rows after the name.
                tensor = module.name.partition("[")[0]
                meeting = Meeting(told, module.conflict, module.shared, module.cosine)
                found.setdefault(tensor, []).append(meeting)
    return found


def grid_of(
    tensors: Mapping[str, Tensor],
    origin: str,
    meetings: Mapping[str, Sequence[Meeting]] | None = None,
    *,
    worst_conflicts_only: bool = False,
) -> Grid | None:
    """The grid of everything that a delta touches, and of what fails; None where there is nothing.

    ``origin`` says in words where the figures are from.
    """
    met = meetings or {}
    drawn = {name: t for name, t in tensors.items() if _is_drawn(t) or name in met}
    # Of a merge in a quantised format no retention is known, yet its adapters may conflict.
    drawn |= {name: Tensor(0) for name in met if name not in drawn}
    if not drawn:
        return None
    places = {name: place_of(name) for name in drawn}
    stems = stem_names(places.values())
    rows = _rows(places.values(), stems)
    layers = sorted({p.layer for p in places.values() if p.layer is not None})
    columns: list[int | None] = [*layers]
    if any(place.layer is None for place in places.values()):
        columns.insert(0, None)
    row_numbers = {row: number for number, row in enumerate(rows)}
    column_numbers = {column: number for number, column in enumerate(columns)}
    together: dict[tuple[int, int], list[str]] = {}
    for name, place in places.items():
        at = row_numbers[_row(place, stems)], column_numbers[place.layer]
        together.setdefault(at, []).append(name)
    cells = [
        _cell(row, column, names, drawn, met) for (row, column), names in sorted(together.items())
    ]
    return Grid(
        tuple(rows),
        tuple(columns),
        tuple(cells),
        origin,
        len(tensors) - sum(name in tensors for name in drawn),
        worst_conflicts_only,
    )


def _is_drawn(tensor: Tensor) -> bool:
    return bool(tensor.delta) or tensor.kept is not None or tensor.fails


def _row(place: Place, stems: Mapping[tuple[str, ...], str]) -> str:
    return place.module if place.layer is None else stems[place.stem] + place.module


def _rows(places: Iterable[Place], stems: Mapping[tuple[str, ...], str]) -> list[str]:
    """Modules of layers first, tower by tower, in the order of the names; then what has none."""
    listed = list(places)
    within = [p for p in listed if p.layer is not None]
    order = {stem: number for number, stem in enumerate(stems)}
    within.sort(key=lambda p: order[p.stem])
    outside = [p for p in listed if p.layer is None]
    return list(dict.fromkeys(_row(place, stems) for place in (*within, *outside)))


def _cell(
    row: int,
    column: int,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    met: Mapping[str, Sequence[Meeting]],
) -> Cell:
    parts = [tensors[name] for name in names]
    failing = tuple(name for name in names if tensors[name].fails)
    found = [meeting for name in names for meeting in met.get(name, ())]
    worst = max(found, key=lambda meeting: meeting.conflict, default=None)
    return Cell(row, column, tuple(names), together(parts), failing, worst)


def together(parts: Sequence[Tensor]) -> Tensor:
    """Several tensors as one: norms add up as squares, ``kept`` and ``noise`` count by the delta,
    of errors the worst is told."""
    if len(parts) == 1:
        return parts[0]
    kept = _by_delta([(p.delta, p.kept) for p in parts])
    noise = _by_delta([(p.delta, None if p.noise is None else p.noise * p.noise) for p in parts])
    return replace(
        Tensor(sum(p.elements for p in parts)),
        base=_norm(p.base for p in parts),
        delta=_norm(p.delta for p in parts),
        kept=kept,
        noise=None if noise is None else math.sqrt(noise),
        worst=max((p.worst for p in parts if p.worst is not None), default=None),
        excess=max((p.excess for p in parts if p.excess is not None), default=None),
    )


def _norm(norms: Iterable[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if known else None


def _by_delta(figures: Sequence[tuple[float | None, float | None]]) -> float | None:
    """The mean, weighted by the delta's square; by nothing where no norm is known."""
    # Products, not powers or fsum: a figure may be too large, and must not stop the report.
    told = [(1.0 if norm is None else norm * norm, x) for norm, x in figures if x is not None]
    weight = sum(w for w, _ in told)
    return sum(w * x for w, x in told) / weight if weight else None
