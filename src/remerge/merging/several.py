"""Several adapters on one base: their changes of each tensor, combined by a method.

Values that an adapter brings whole (modules_to_save, trained token rows, a resized vocabulary) are
no deltas: they are taken as they are from the one adapter that has them, and the others' deltas
are added to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from remerge.adapters.deltas import Change, Changes, Delta, Factor, Replaced, ReplacedRows
from remerge.errors import BadInput, Unsupported
from remerge.merging.combined import Combined
from remerge.merging.methods.method import Joint, Method, Term
from remerge.merging.methods.registry import METHODS
from remerge.merging.recipe import Recipe
from remerge.merging.scope import Scope

_BLOCK_ROWS = 2**10
_TIES = "tie_word_embeddings"


def combine(
    found: Sequence[Changes],
    labels: Sequence[str],
    recipe: Recipe,
    output_dtype: Callable[[str, str], str],
) -> Changes:
    """What the adapters ask for together, by the recipe's method and weights.

    ``labels`` name the adapters in messages; ``output_dtype`` tells a tensor's dtype in the output
    from its name and its own. Raises `BadInput` where two adapters replace the same values or ask
    for different configurations, `Unsupported` where they cannot be told apart.
    """
    method = METHODS[recipe.method]
    if len(found) == 1 and recipe.method == "sum" and recipe.weights == (1.0,):
        return found[0]
    # With a weight of zero an adapter takes no part: what it would replace stays as well.
    taking = [
        changes if method.ordered or weight != 0.0 else replace(changes, tensors={}, config={})
        for changes, weight in zip(found, recipe.weights, strict=True)
    ]
    work = _Work(taking, labels, recipe, method, Scope())
    config = work.config()
    work.check_tied()
    tensors = {name: work.change(name, output_dtype) for name in work.names}
    counts: Counter[str] = Counter()
    for changes in found:
        counts.update(changes.counts)
    notes = [note for changes in found for note in changes.notes]
    return Changes(
        tensors=tensors,
        config=config,
        notes=(*dict.fromkeys(notes), *work.notes(), *method.notes),
        counts=counts,
        dropped=frozenset(name for changes in found for name in changes.dropped),
    )


@dataclass(frozen=True)
class _Work:
    found: Sequence[Changes]
    labels: Sequence[str]
    recipe: Recipe
    method: Method[Any]
    scope: Scope

    @property
    def names(self) -> list[str]:
        return sorted({name for changes in self.found for name in changes.tensors})

    def change(self, name: str, output_dtype: Callable[[str, str], str]) -> Change:
        """The combined change of one tensor."""
        changes = tuple(changes.tensors.get(name) for changes in self.found)
        first = self._one_kind(name, changes)
        terms = tuple(
            Term.of(adapter, weight, change)
            for adapter, (weight, change) in enumerate(
                zip(self.recipe.weights, changes, strict=True)
            )
        )
        replacements = () if self.method.ordered else self._replacements(name, changes)
        joint = Joint(
            name,
            first.view,
            output_dtype(name, first.dtype),
            terms,
            replacements,
            changes,
            self.scope,
        )
        reads = any(change is not None and change.reads_base for change in changes)
        if not self.method.ordered and not any(joint.touching):
            return replace(first, steps=replacements, reads_base=reads)
        steps = self.method.combine(joint, self.method.read(self.recipe.parameters))
        self.scope.members += [step for step in steps if isinstance(step, Combined)]
        return replace(first, steps=steps, reads_base=reads)

    def _one_kind(self, name: str, changes: Sequence[Change | None]) -> Change:
        """The first change, after checking that all see the tensor alike."""
        first: Change | None = None
        for change in changes:
            if change is None:
                continue
            first = first or change
            if (change.shape, change.view, change.source) != (
                first.shape,
                first.view,
                first.source,
            ):
                raise Unsupported(
                    f"{name} has shape {first.shape} with one adapter and {change.shape} with "
                    "another.",
                    why="One of them resized the vocabulary.",
                    hint="Merge that one first, and the others into the result.",
                )
        assert first is not None
        return first

    def _replacements(self, name: str, changes: Sequence[Change | None]) -> tuple[Delta, ...]:
        """The values that adapters bring whole, each place from one adapter."""
        brought = [
            (adapter, step)
            for adapter, change in enumerate(changes)
            if change is not None
            for step in change.steps
            if isinstance(step, Replaced | ReplacedRows)
        ]
        winner = self._preferred(name)
        kept: list[tuple[int, Replaced | ReplacedRows]] = []
        for adapter, step in brought:
            rivals = [
                (other, rival) for other, rival in kept if other != adapter and _meet(step, rival)
            ]
            if not rivals:
                kept.append((adapter, step))
            elif all(_equal(step, rival) for _, rival in rivals):
                continue
            elif winner == adapter:
                kept = [pair for pair in kept if pair not in rivals] + [(adapter, step)]
            elif winner not in [other for other, _ in rivals]:
                raise self._both_replace(name, rivals[0][0], adapter)
        return tuple(step for _, step in sorted(kept, key=lambda pair: pair[1].stage))

    def _preferred(self, name: str) -> int | None:
        """The adapter that was told to win this tensor."""
        for pattern, adapter in self.recipe.prefer:
            if fnmatchcase(name, pattern):
                return adapter - 1
        return None

    def _both_replace(self, name: str, one: int, other: int) -> BadInput:
        return BadInput(
            f"{name} is replaced by two adapters with different values: {self.labels[one]} and "
            f"{self.labels[other]}.",
            why="A module that was trained whole (modules_to_save, token rows) cannot be added up.",
            hint=f"Say whose to take: --prefer {self.labels[one]} (or --prefer "
            f"'{name}={self.labels[one]}'), or merge one after the other: --method sequential.",
        )

    def config(self) -> Mapping[str, object]:
        """The new values of config.json."""
        merged: dict[str, object] = {}
        owners: dict[str, int] = {}
        for adapter, changes in enumerate(self.found):
            for key, value in changes.config.items():
                if merged.setdefault(key, value) != value:
                    raise BadInput(
                        f"Two adapters set {key} in config.json: {self.labels[owners[key]]} to "
                        f"{merged[key]!r}, {self.labels[adapter]} to {value!r}.",
                        hint="Merge one first, and the other into the result.",
                    )
                owners.setdefault(key, adapter)
        return merged

    def check_tied(self) -> None:
        """Refuse an adapter that changes a tensor from which another unties its twin: on its own
        it would change both."""
        untying = [c for c in self.found if any(key.endswith(_TIES) for key in c.config)]
        others = [
            (label, changes)
            for label, changes in zip(self.labels, self.found, strict=True)
            if changes not in untying
        ]
        for head in (change for changes in untying for change in changes.tensors.values()):
            if not any(isinstance(step, Replaced) for step in head.steps):
                continue
            for label, changes in others:
                for name, change in changes.tensors.items():
                    twin = head.source in (None, name) and change.shape == head.shape
                    if twin and name != head.tensor:
                        raise Unsupported(
                            f"{label} changes {name}, from which another adapter unties "
                            f"{head.tensor}.",
                            why="On its own it changes both at once.",
                            hint="Merge one first, and the other into the result.",
                        )

    def notes(self) -> list[str]:
        """What the user must know of values that were taken whole."""
        told: list[str] = []
        for adapter, (changes, weight) in enumerate(
            zip(self.found, self.recipe.weights, strict=True)
        ):
            whole = [
                name
                for name, change in changes.tensors.items()
                if any(isinstance(step, Replaced | ReplacedRows) for step in change.steps)
            ]
            if whole and weight not in (0.0, 1.0) and not self.method.ordered:
                told.append(
                    f"{self.labels[adapter]} replaces {', '.join(whole[:3])}"
                    f"{' and others' if len(whole) > 3 else ''}: its weight of {weight:g} does not "
                    "apply there."
                )
        return told


def _meet(one: Replaced | ReplacedRows, other: Replaced | ReplacedRows) -> bool:
    """Whether two replacements set a value in common."""
    if isinstance(one, ReplacedRows) and isinstance(other, ReplacedRows):
        return bool(set(one.indices) & set(other.indices))
    if isinstance(one, ReplacedRows) or isinstance(other, ReplacedRows):
        rows, block = (one, other) if isinstance(one, ReplacedRows) else (other, one)
        assert isinstance(rows, ReplacedRows)
        assert isinstance(block, Replaced)
        return any(block.row <= i < block.row + block.values.shape[0] for i in rows.indices)
    return _overlap(one.row, one.values.shape[0], other.row, other.values.shape[0]) and _overlap(
        one.col, one.values.shape[1], other.col, other.values.shape[1]
    )


def _overlap(first: int, length: int, other: int, other_length: int) -> bool:
    return first < other + other_length and other < first + length


def _equal(one: Replaced | ReplacedRows, other: Replaced | ReplacedRows) -> bool:
    """Whether both set the same places to the same values: a copy that training left alone."""
    if isinstance(one, Replaced) and isinstance(other, Replaced):
        same_place = (one.row, one.col) == (other.row, other.col)
    elif isinstance(one, ReplacedRows) and isinstance(other, ReplacedRows):
        same_place = one.indices == other.indices
    else:
        return False
    if not same_place or one.values.shape != other.values.shape:
        return False
    rows = one.values.shape[0]
    return all(
        torch.equal(*(_rows(f, range(at, min(at + _BLOCK_ROWS, rows))) for f in factors))
        for factors in [(one.values, other.values)]
        for at in range(0, rows, _BLOCK_ROWS)
    )


def _rows(factor: Factor, rows: range) -> torch.Tensor:
    if factor.read_rows is not None:
        return factor.read_rows(rows)
    return factor.read()[rows.start : rows.stop]
