"""Values that adapters bring whole: each place of a tensor from one adapter.

PEFT saves whole embeddings beside adapters that target them, or whose vocabulary was changed, also
where they were not trained: such a copy of the base's own values replaces nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Change, Factor, Replaced, ReplacedRows
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.reading import DecodedBase, Reader

Whole = Replaced | ReplacedRows

# Whether a step replaces the base's values by the same values.
IsCopy = Callable[[Change, Replaced], bool]

_BLOCK_ROWS = 2**10


@dataclass(frozen=True)
class Brought:
    """Values of the ``adapter``-th adapter, and the change that they are a part of."""

    adapter: int
    change: Change
    step: Whole


@dataclass(frozen=True)
class Clash:
    """Two adapters that replace the same place by different values."""

    one: int
    other: int


def brought_by(changes: Sequence[Change | None]) -> list[Brought]:
    """All that adapters bring whole for one tensor, in their order."""
    return [
        Brought(adapter, change, step)
        for adapter, change in enumerate(changes)
        if change is not None
        for step in change.steps
        if isinstance(step, Replaced | ReplacedRows)
    ]


def settle(brought: Sequence[Brought], winner: int | None, is_copy: IsCopy) -> list[Whole] | Clash:
    """The steps that stand, in the order in which they apply: where two adapters differ, the
    ``winner``'s."""
    settled = _settle(brought, winner)
    if isinstance(settled, Clash):
        trained = [one for one in brought if not _is_copy(one, is_copy)]
        settled = _settle(trained, winner)
    return settled


def _settle(brought: Sequence[Brought], winner: int | None) -> list[Whole] | Clash:
    kept: list[Brought] = []
    for one in sorted(brought, key=lambda one: one.adapter != winner):
        rivals = [k for k in kept if k.adapter != one.adapter and _meet(k.step, one.step)]
        for rival in rivals:
            if rival.adapter != winner and not _agree(rival.step, one.step):
                return Clash(*sorted((rival.adapter, one.adapter)))
        if not any(_covers(rival.step, one.step) for rival in rivals):
            kept.append(one)
    # The winner's come last: they stand where they meet another's.
    kept.sort(key=lambda one: (one.adapter == winner, one.step.stage))
    return [one.step for one in kept]


def copies_of(base: Checkpoint, readable: DecodedBase) -> IsCopy:
    """Compares with what a base holds; reads it only where it is asked."""

    def is_copy(change: Change, step: Replaced) -> bool:
        source = readable.tensors.get(change.source or change.tensor)
        if source is None or tuple(source.shape) != change.shape or source.dtype not in MERGEABLE:
            return False
        reader = Reader(base)
        columns, cols = change.view[1], step.values.shape[1]
        try:
            for rows in _blocks(step.values):
                first = (step.row + rows.start) * columns
                held = reader.values(source, first, len(rows) * columns).double()
                part = held.view(-1, columns)[:, step.col : step.col + cols]
                if not torch.equal(part, _rows(step.values, rows)):
                    return False
        finally:
            reader.close()
        return True

    return is_copy


def _is_copy(one: Brought, is_copy: IsCopy) -> bool:
    return isinstance(one.step, Replaced) and is_copy(one.change, one.step)


def _meet(one: Whole, other: Whole) -> bool:
    """Whether two replacements set a value in common."""
    if isinstance(one, ReplacedRows) and isinstance(other, ReplacedRows):
        return bool(set(one.indices) & set(other.indices))
    if isinstance(one, ReplacedRows):
        one, other = other, one
    assert isinstance(one, Replaced)
    if isinstance(other, ReplacedRows):
        return any(index in _rows_of(one) for index in other.indices)
    return _overlap(_rows_of(one), _rows_of(other)) and _overlap(_cols_of(one), _cols_of(other))


def _covers(one: Whole, other: Whole) -> bool:
    """Whether nothing of the other is left beneath the one, whole rows being as wide as both."""
    if isinstance(one, ReplacedRows):
        return isinstance(other, ReplacedRows) and set(other.indices) <= set(one.indices)
    if isinstance(other, ReplacedRows):
        return all(index in _rows_of(one) for index in other.indices) and (
            one.values.shape[1] == other.values.shape[1]
        )
    return _within(_rows_of(other), _rows_of(one)) and _within(_cols_of(other), _cols_of(one))


def _agree(one: Whole, other: Whole) -> bool:
    """Whether both set the values in common alike: what training left alone."""
    if isinstance(one, ReplacedRows) and isinstance(other, ReplacedRows):
        common = set(one.indices) & set(other.indices)
        mine, theirs = (
            step.values.read()[[n for n, index in enumerate(step.indices) if index in common]]
            for step in (_ordered(one), _ordered(other))
        )
        return torch.equal(mine, theirs)
    if isinstance(one, ReplacedRows) or isinstance(other, ReplacedRows):
        return False
    if (one.row, one.col, one.values.shape) != (other.row, other.col, other.values.shape):
        return False
    return all(
        torch.equal(_rows(one.values, rows), _rows(other.values, rows))
        for rows in _blocks(one.values)
    )


def _ordered(step: ReplacedRows) -> ReplacedRows:
    """The same rows in the order of their indices."""
    order = sorted(range(len(step.indices)), key=step.indices.__getitem__)
    values = Factor(step.values.shape, lambda: step.values.read()[order])
    return ReplacedRows(values, tuple(step.indices[n] for n in order))


def _rows_of(step: Replaced) -> range:
    return range(step.row, step.row + step.values.shape[0])


def _cols_of(step: Replaced) -> range:
    return range(step.col, step.col + step.values.shape[1])


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _within(one: range, other: range) -> bool:
    return other.start <= one.start and one.stop <= other.stop


def _blocks(values: Factor) -> list[range]:
    rows = values.shape[0]
    return [range(at, min(at + _BLOCK_ROWS, rows)) for at in range(0, rows, _BLOCK_ROWS)]


def _rows(factor: Factor, rows: range) -> torch.Tensor:
    if factor.read_rows is not None:
        return factor.read_rows(rows)
    return factor.read()[rows.start : rows.stop]
