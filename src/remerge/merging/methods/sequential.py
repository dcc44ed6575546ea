"""Each adapter onto the rounded result of the one before: what merging them one by one gives.

``W_i = round(W_(i-1) + w_i delta_i(W_(i-1)))`` in the output's dtype, in one pass. DoRA's norms are
those of the tensor it is merged into. What a later adapter replaces stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from remerge.adapters.deltas import (
    BaseMatrix,
    Change,
    Decomposes,
    Delta,
    Factor,
    Load,
    Prepared,
    Rounded,
    Window,
)
from remerge.merging.combined import numbers_of
from remerge.merging.methods.method import Joint, Method, Parameters, Term, replacements_of
from remerge.merging.methods.weighted import add_weighted
from remerge.merging.preparations import StagedMatrix
from remerge.merging.ties import settle_ties
from remerge.sources.dtypes import torch_dtype


class SequentialParameters(Parameters):
    """None."""


@dataclass(frozen=True, eq=False)
class Sequential:
    """The changes of several adapters, each on the rounded result of those before."""

    changes: tuple[Change, ...]
    dtype: str
    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(f for c in self.changes for step in c.steps for f in step.factors)

    @property
    def whole_rows(self) -> bool:
        return any(change.whole_rows for change in self.changes)

    def widen(self, rows: range) -> range:
        while True:
            wider = rows
            for change in self.changes:
                wider = change.widen(wider)
            if wider == rows:
                return rows
            rows = wider

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the decompositions that the adapters' own steps ask for."""
        steps = [step for change in self.changes for step in change.steps]
        return max((s.bytes_needed(shape) for s in steps if isinstance(s, Decomposes)), default=0)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The preparations of every step by ``adapter.step.name``, each on what comes before it."""
        prepared: dict[str, torch.Tensor] = {}
        for number, change in enumerate(self.changes):
            seen = _Rounded(self, number, base, load, prepared)
            done: list[Prepared] = []
            for place, step in enumerate(change.steps):
                staged = StagedMatrix(seen, change, tuple(done), load, torch.device("cpu"))
                done.append(step.prepare(staged, load))
                prepared |= {f"{number}.{place}.{name}": v for name, v in done[-1].items()}
        return prepared

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        self.run(len(self.changes), tile, window, load, prepared)

    def run(
        self, count: int, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared
    ) -> None:
        """Merge the first ``count`` adapters; the last of all is left for the kernel to round."""
        for number, change in enumerate(self.changes[:count]):
            source = tile.clone().reshape(-1)
            for place, step in enumerate(change.steps):
                step.apply(tile, window, load, numbers_of(prepared, number, place))
            if self.dtype == "F32":
                settle_ties(change, source, tile, window, load)
            if number + 1 < len(self.changes):
                tile.copy_(_round(tile, self.dtype))


@dataclass(frozen=True)
class _Rounded:
    """A base tensor as the first adapters leave it."""

    sequential: Sequential
    count: int
    base: BaseMatrix
    load: Load
    prepared: Mapping[str, torch.Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.sequential.dtype) if self.count else self.base.dtype

    def other(self, tensor: str) -> BaseMatrix:
        return self.base.other(tensor)

    def rows(self, rows: range) -> torch.Tensor:
        tile = self.base.rows(rows)
        window = Window(rows, range(self.base.shape[1]))
        # All of them are rounded: none of these is the last.
        self.sequential.run(self.count, tile, window, self.load, self.prepared)
        return tile


def _round(tile: torch.Tensor, dtype: str) -> torch.Tensor:
    """On the path that the kernel takes: float64, float32, then 16 bits."""
    rounded = torch_dtype(dtype)
    return (tile.to(torch.float32) if rounded.itemsize < 4 else tile).to(rounded)


def _combine(joint: Joint, parameters: SequentialParameters) -> tuple[Delta, ...]:
    changes: list[Change] = []
    for term, change in zip(joint.terms, joint.changes, strict=True):
        if change is None:
            if not changes and term.weight != 0.0:
                changes += _rounded_by(joint)
            continue
        if not change.reads_base:
            # Nothing is left of what earlier adapters made of it.
            changes.clear()
        change = _onto(change, joint.dtype) if changes else change
        alone = replace(
            joint,
            terms=(Term.of(term.adapter, term.weight, change),),
            replacements=replacements_of(change),
            changes=(change,),
        )
        steps = add_weighted("sum", alone, (term.weight,))
        changes.append(replace(change, steps=steps))
    if len(changes) == 1:
        return changes[0].steps
    return (Sequential(tuple(changes), joint.dtype),)


def _onto(change: Change, dtype: str) -> Change:
    """The change of a tensor that is stored in ``dtype``, as residuals are then too."""
    steps = tuple(
        replace(step, dtype=torch_dtype(dtype)) if isinstance(step, Rounded) else step
        for step in change.steps
    )
    return replace(change, dtype=dtype, steps=steps)


def _rounded_by(joint: Joint) -> list[Change]:
    """What an adapter that leaves the tensor alone does to it before any other: it is written in
    the output's dtype."""
    first = next(change for change in joint.changes if change is not None)
    return [] if first.dtype == joint.dtype else [replace(first, steps=(), reads_base=True)]


SEQUENTIAL = Method("sequential", SequentialParameters, _combine, ordered=True)
