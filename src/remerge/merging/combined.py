"""Several adapters' full deltas of one tensor, combined tile by tile.

A rule sees the deltas of a window, float64, stacked: what each adapter alone would add to it. Where
it must know more than a window (a threshold, a norm), it measures that once per tensor, before any
chunk, on blocks whose order and size no machine or budget changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch

from remerge.adapters.deltas import (
    BaseMatrix,
    Decomposes,
    Delta,
    Factor,
    Load,
    Prepared,
    WholeRows,
    Window,
)
from remerge.merging.methods.method import Joint, Term

# Values of all deltas together that are at hand at once, 8 MiB: with fewer, threads wait for each
# other's Python; with more, memory grows and nothing is faster.
_ELEMENTS = 2**20


class Rule(Protocol):
    """A method on full deltas."""

    @property
    def name(self) -> str:
        """What plans call it."""
        ...

    @property
    def whole_rows(self) -> bool:
        """Whether values are combined by whole rows only."""
        ...

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        """Numbers that need more than a window, computed once; {} when none."""
        ...

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        """The change (rows, columns) from the deltas (adapters, rows, columns) of a window, which
        may be overwritten. A window is whole rows, or a part of one row."""
        ...


@dataclass(frozen=True, eq=False)
class Combined:
    """``W = R(W) + rule(delta_1(W), ..., delta_n(W))`` with the replacements ``R``."""

    joint: Joint
    rule: Rule
    stage: ClassVar[int] = 3

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def steps(self) -> Iterator[Delta]:
        for term in self.joint.terms:
            yield from (*term.start, *term.steps)
        yield from self.joint.replacements

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for step in self.steps for factor in step.factors)

    @cached_property
    def additive(self) -> bool:
        """Whether no delta depends on the base."""
        return all(term.additive for term in self.joint.terms)

    @cached_property
    def whole_rows(self) -> bool:
        return self.rule.whole_rows or any(
            isinstance(step, WholeRows) and step.whole_rows for step in self.steps
        )

    def widen(self, rows: range) -> range:
        if self.joint.is_vector and self.rule.whole_rows:
            # A vector is one row, though it is seen as a column.
            return range(self.joint.view[0])
        while True:
            wider = rows
            for step in self.steps:
                if isinstance(step, WholeRows) and step.whole_rows:
                    wider = step.widen(wider)
            if wider == rows:
                return rows
            rows = wider

    def parts(self, rows: range, columns: int) -> Iterator[range]:
        """Rows in order, a few at a time that can be changed alone."""
        step = max(1, _ELEMENTS // (len(self.joint.terms) * columns))
        first = rows.start
        while first < rows.stop:
            part = range(first, min(first + step, rows.stop))
            part = self.widen(part) if self.whole_rows else part
            yield part
            first = part.stop

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the decompositions that the adapters' own steps ask for."""
        found = [step.bytes_needed(shape) for step in self.steps if isinstance(step, Decomposes)]
        return max(found, default=0)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        prepared = self.prepare_terms(base, load)
        return prepared | self.rule.prepare(Deltas(self, base, load, prepared))

    def prepare_terms(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The preparations of the adapters' own steps, by ``adapter.step.name``."""
        prepared: dict[str, torch.Tensor] = {}
        for term in self.joint.terms:
            done: list[Prepared] = []
            steps = (*term.start, *term.steps)
            for number, step in enumerate(steps):
                seen = _Before(base, steps[:number], tuple(done), load)
                done.append(step.prepare(seen, load))
                prepared |= {f"{term.adapter}.{number}.{k}": v for k, v in done[-1].items()}
        return prepared

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        start = window.rows.start
        for rows in self.parts(window.rows, len(window.cols)):
            part, values = Window(rows, window.cols), tile[rows.start - start : rows.stop - start]
            deltas = self.deltas(values, part, load, prepared)
            self.replace(values, part, load)
            change = self.change(values, deltas, part, prepared)
            if self.joint.replacements:
                # A replaced value of -0.0 stays as it is; the kernel sees to the base's.
                change.masked_fill_(change == 0, -0.0)
            values += change

    def replace(self, tile: torch.Tensor, window: Window, load: Load) -> None:
        """Set the values that adapters bring whole."""
        for step in self.joint.replacements:
            step.apply(tile, window, load, {})

    def change(
        self, tile: torch.Tensor, deltas: torch.Tensor, window: Window, prepared: Prepared
    ) -> torch.Tensor:
        """What is added to ``tile``, the values that the deltas are of."""
        return self.rule.combine(deltas, window, prepared)

    def deltas(
        self, tile: torch.Tensor | None, window: Window, load: Load, prepared: Prepared
    ) -> torch.Tensor:
        """What each adapter adds to a window, (adapters, rows, columns) in float64.

        ``tile`` holds the base's values there; it may be None where all terms are additive.
        """
        shape = len(self.joint.terms), len(window.rows), len(window.cols)
        device = self._device(load) if tile is None else tile.device
        stack = torch.zeros(shape, dtype=torch.float64, device=device)
        for term, delta in zip(self.joint.terms, stack, strict=True):
            if not term.steps:
                continue
            if not term.additive:
                assert tile is not None
                delta.copy_(tile)
            self._run(term, delta, window, load, prepared)
            for row in term.rows:
                if row in window.rows:
                    delta[row - window.rows.start] = 0.0
        return stack

    def _device(self, load: Load) -> torch.device:
        """Where the factors are loaded to."""
        found = next(iter(self.factors), None)
        return torch.device("cpu") if found is None else load(found).device

    def _run(
        self, term: Term, delta: torch.Tensor, window: Window, load: Load, prepared: Prepared
    ) -> None:
        """Turn the base's values (zeros, of an additive term) into the term's delta."""
        steps = (*term.start, *term.steps)
        before = delta.clone() if not term.additive and not term.start else None
        for number, step in enumerate(steps):
            if term.start and number == len(term.start):
                before = delta.clone()
            step.apply(delta, window, load, numbers_of(prepared, term.adapter, number))
        if before is not None:
            delta -= before


def numbers_of(prepared: Prepared, adapter: int, step: int) -> Prepared:
    """The preparations of one step of one adapter, by their own names."""
    if not prepared:
        return prepared
    start = f"{adapter}.{step}."
    return {name[len(start) :]: v for name, v in prepared.items() if name.startswith(start)}


@dataclass(frozen=True)
class _Before:
    """A base tensor after some steps of one adapter: what its next step prepares on."""

    base: BaseMatrix
    steps: Sequence[Delta]
    prepared: Sequence[Prepared]
    load: Load

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def other(self, tensor: str) -> BaseMatrix:
        return self.base.other(tensor)

    def rows(self, rows: range) -> torch.Tensor:
        tile = self.base.rows(rows)
        window = Window(rows, range(self.base.shape[1]))
        for step, numbers in zip(self.steps, self.prepared, strict=True):
            step.apply(tile, window, self.load, numbers)
        return tile


@dataclass(frozen=True)
class Deltas:
    """All deltas of one tensor, block by block: what a rule measures on."""

    combined: Combined
    base: BaseMatrix
    load: Load
    prepared: Mapping[str, torch.Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Adapters, rows, columns."""
        joint = self.combined.joint
        return (len(joint.terms), *joint.view)

    @property
    def elements(self) -> int:
        """Values of one delta."""
        return self.shape[1] * self.shape[2]

    def blocks(self) -> Iterator[tuple[Window, torch.Tensor]]:
        """Windows of whole rows in order, each with its deltas (adapters, rows, columns), which
        may be overwritten; the same blocks on every machine."""
        _, rows, columns = self.shape
        for block in self.combined.parts(range(rows), columns):
            window = Window(block, range(columns))
            tile = None if self.combined.additive else self.base.rows(block)
            yield window, self.combined.deltas(tile, window, self.load, self.prepared)

    def start(self, window: Window) -> torch.Tensor:
        """What the deltas of a window of whole rows are added to: the base's values, and those that
        adapters bring whole."""
        tile = self.base.rows(window.rows)
        self.combined.replace(tile, window, self.load)
        return tile

    def everywhere(self) -> Iterator[Deltas]:
        """The deltas of every combined tensor of the merge, by name."""
        for member in self.combined.joint.scope.members:
            if member is self.combined:
                yield self
                continue
            # An additive one never reads its base, which may lack the tensor.
            base = self.base if member.additive else self.base.other(member.joint.tensor)
            yield Deltas(member, base, self.load, member.prepare_terms(base, self.load))
