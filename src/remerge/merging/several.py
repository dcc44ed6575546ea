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

from remerge.adapters.deltas import Change, Changes, Delta, Replaced, ReplacedRows
from remerge.errors import BadInput, Unsupported
from remerge.merging.combined import Combined
from remerge.merging.methods.method import Joint, Method, Term
from remerge.merging.methods.registry import METHODS
from remerge.merging.recipe import Recipe
from remerge.merging.replacements import Clash, IsCopy, brought_by, settle
from remerge.merging.scope import Scope

_TIES = "tie_word_embeddings"


def combine(
    found: Sequence[Changes],
    labels: Sequence[str],
    recipe: Recipe,
    output_dtype: Callable[[str, str], str],
    is_copy: IsCopy,
) -> Changes:
    """What the adapters ask for together, by the recipe's method and weights.

    ``labels`` name the adapters in messages; ``output_dtype`` tells a tensor's dtype in the output
    from its name and its own; ``is_copy`` compares replaced values with the base's, and is asked
    only where two adapters replace the same ones differently. Raises `BadInput` where two adapters
    replace the same values or ask for different configurations, `Unsupported` where they cannot be
    told apart.
    """
    method = METHODS[recipe.method]
    if not found:
        return Changes(tensors={}, config={}, notes=(), counts={})
    if len(found) == 1 and recipe.method == "sum" and recipe.weights == (1.0,):
        return found[0]
    # With a weight of zero an adapter takes no part: what it would replace stays as well.
    taking = [
        changes if weight != 0.0 else replace(changes, tensors={}, config={}, dropped=frozenset())
        for changes, weight in zip(found, recipe.weights, strict=True)
    ]
    work = _Work(taking, labels, recipe, method, Scope(), is_copy)
    config = work.config()
    work.check_tied()
    combined = {name: work.change(name, output_dtype) for name in work.names}
    # Without a step and on its own values a tensor stays as it is.
    tensors = {n: c for n, c in combined.items() if c.steps or c.source is not None}
    counts: Counter[str] = Counter()
    for changes in found:
        counts.update(changes.counts)
    notes = [note for changes in found for note in changes.notes]
    return Changes(
        tensors=tensors,
        config=config,
        notes=(*dict.fromkeys(notes), *work.notes(), *method.notes),
        counts=counts,
        dropped=frozenset(name for changes in taking for name in changes.dropped),
    )


@dataclass(frozen=True)
class _Work:
    found: Sequence[Changes]
    labels: Sequence[str]
    recipe: Recipe
    method: Method[Any]
    scope: Scope
    is_copy: IsCopy

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
            self.found[0].rslora,
        )
        reads = any(change is not None and change.reads_base for change in changes)
        if not self.method.ordered:
            reads = reads or not any(isinstance(s, Replaced) and s.whole for s in replacements)
        if not self.method.ordered and not any(joint.touching):
            return replace(first, steps=replacements, reads_base=reads)
        steps = self.method.combine(joint, self.method.read(self.recipe.parameters))
        self.scope.members += [step for step in steps if isinstance(step, Combined)]
        return replace(first, steps=steps, reads_base=reads)

    def _one_kind(self, name: str, changes: Sequence[Change | None]) -> Change:
        """The first change, after checking that all see the tensor alike."""
        touching = [(n, change) for n, change in enumerate(changes) if change is not None]
        number, first = touching[0]
        for other, change in touching[1:]:
            if (change.shape, change.view, change.source) == (
                first.shape,
                first.view,
                first.source,
            ):
                continue
            one, two = self.labels[number], self.labels[other]
            same = change.shape == first.shape
            raise Unsupported(
                f"{name} starts from another tensor with {one} than with {two}."
                if same
                else f"{name} has shape {first.shape} with {one} and {change.shape} with {two}.",
                why="One of them unties it." if same else "One of them resized the vocabulary.",
                hint="Merge that one first, and the others into the result.",
            )
        return first

    def _replacements(self, name: str, changes: Sequence[Change | None]) -> tuple[Delta, ...]:
        """The values that adapters bring whole, each place from one adapter."""
        settled = settle(brought_by(changes), self._preferred(name), self.is_copy)
        if isinstance(settled, Clash):
            raise self._both_replace(name, settled.one, settled.other)
        return tuple(settled)

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
        unties = [any(key.endswith(_TIES) for key in changes.config) for changes in self.found]
        for untier, changes in enumerate(self.found):
            heads = changes.tensors.values() if unties[untier] else ()
            for head in (h for h in heads if h.source or _is_replaced(h)):
                for other, others in enumerate(self.found):
                    if not unties[other]:
                        self._check_twin(head, untier, others, other)

    def _check_twin(self, head: Change, untier: int, others: Changes, other: int) -> None:
        for name, change in others.tensors.items():
            twin = head.source in (None, name) and change.shape == head.shape
            if twin and name != head.tensor:
                raise Unsupported(
                    f"{self.labels[other]} changes {name}, from which {self.labels[untier]} unties "
                    f"{head.tensor}.",
                    why="On its own it changes both at once.",
                    hint="Merge one first, and the other into the result.",
                )

    def notes(self) -> list[str]:
        """What the user must know of weights of zero, and of values that were taken whole."""
        told: list[str] = []
        for adapter, (label, weight) in enumerate(
            zip(self.labels, self.recipe.weights, strict=True)
        ):
            if weight == 0.0:
                told.append(f"{label} has a weight of zero: it takes no part.")
            elif self.method.ordered:
                lost = self._overwritten(adapter)
                if lost:
                    told.append(f"{label} replaces {some(lost)}: what others made of it is lost.")
            elif weight != 1.0:
                whole = [
                    name
                    for name, change in self.found[adapter].tensors.items()
                    if any(isinstance(step, Replaced | ReplacedRows) for step in change.steps)
                ]
                if whole:
                    told.append(
                        f"{label} replaces {some(whole)}: its weight of {weight:g} does not apply "
                        "there."
                    )
        return told

    def _overwritten(self, adapter: int) -> list[str]:
        """The tensors that an adapter replaces whole, and that those before it changed."""
        return [
            name
            for name, change in self.found[adapter].tensors.items()
            if not change.reads_base
            and any(name in before.tensors for before in self.found[:adapter])
        ]


def _is_replaced(change: Change) -> bool:
    return any(isinstance(step, Replaced) for step in change.steps)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
