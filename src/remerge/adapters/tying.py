"""Tied embeddings: one tensor with two roles, and an adapter that may train only one of them.

In training a low-rank change acts in the role that was trained; merged into the shared tensor it
acts in both, as in PEFT's merge_and_unload, and the user is told. A role that was trained as a
whole (modules_to_save, rows of its own) gets its own tensor, and config.json unties the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.adapters.blocks import Step
from remerge.adapters.deltas import ReplacedRows
from remerge.adapters.edits import Context, Edit, Whole
from remerge.adapters.vocabulary import is_output_head
from remerge.errors import Unsupported

_TIE = "tie_word_embeddings"


@dataclass(frozen=True)
class Slot:
    """What happens to one parameter of the output.

    ``created``: the tensor to make, None where the parameter's own regions are changed; ``source``:
    the base tensor whose values a created one starts from, if any.
    """

    parameter: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    created: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Tied:
    """The slots of an adapter, and what they mean for config.json and the user."""

    slots: tuple[Slot, ...]
    config: Mapping[str, object]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Parameters that share memory, the input embedding first; ``stored`` are those that the
    checkpoint holds under names of their own."""

    members: tuple[str, ...]
    stored: frozenset[str]
    edits: Mapping[str, tuple[Edit, ...]]
    wholes: Mapping[str, Whole]

    def low_rank(self, member: str) -> tuple[Step, ...]:
        """The member's own steps that are no replacement of rows."""
        return tuple(step for step in self._steps(member) if not isinstance(step, ReplacedRows))

    def rows(self, member: str) -> tuple[ReplacedRows, ...]:
        """The member's own trained rows."""
        return tuple(step for step in self._steps(member) if isinstance(step, ReplacedRows))

    def _steps(self, member: str) -> Iterable[Step]:
        return (step for edit in self.edits.get(member, ()) for step in edit.steps)


def slots(context: Context, edits: Sequence[Edit]) -> Tied:
    """Decide, for every parameter that changes, which output tensors change with it."""
    found: list[Slot] = []
    config: dict[str, object] = {}
    notes: list[str] = []
    for group in _groups(context, edits):
        made = _slots(context, group)
        found += made
        apart = [slot.parameter for slot in made if slot.created is not None]
        if len(group.members) == 2 and apart:
            config.update(_untied_config(context))
            notes.append(
                f"{' and '.join(group.members)} shared one tensor but were trained apart; the "
                f"output has a tensor for each, and {_TIE} is false."
            )
        elif _share_a_low_rank(group) and not context.config.ensure_weight_tying:
            notes.append(
                f"{' and '.join(group.members)} are tied: they share one tensor, so the low-rank "
                "change that training made to one of them now acts in all of them (as in PEFT's "
                "merge_and_unload). The merged model differs from the adapter on its base there; "
                "keep the adapter unmerged, or train with ensure_weight_tying, to avoid it."
            )
    return Tied(tuple(found), config, tuple(notes))


def _share_a_low_rank(group: _Group) -> bool:
    return len(group.members) > 1 and any(group.low_rank(name) for name in group.members)


def _groups(context: Context, edits: Sequence[Edit]) -> Iterable[_Group]:
    by_parameter: dict[str, list[Edit]] = {}
    for edit in edits:
        by_parameter.setdefault(edit.parameter, []).append(edit)
    done: set[str] = set()
    for parameter in [*context.wholes, *by_parameter]:
        if parameter in done:
            continue
        members = (parameter, *context.names.tied(parameter))
        done.update(members)
        stored = frozenset(name for name in members if _is_stored(context, name))
        ordered = sorted(members, key=lambda n: (is_output_head(n), n not in stored, n))
        yield _Group(
            tuple(ordered),
            stored,
            {name: tuple(by_parameter[name]) for name in members if name in by_parameter},
            {name: context.wholes[name] for name in members if name in context.wholes},
        )


def _is_stored(context: Context, parameter: str) -> bool:
    """Whether the checkpoint holds the parameter under a name of its own."""
    if not context.names.tied(parameter):
        return bool(context.names.regions(parameter))
    return context.names.checkpoint_name(parameter) in context.base.tensors


def _slots(context: Context, group: _Group) -> list[Slot]:
    """Slots of the stored members, and of those others whose part is not that of the member whose
    tensor they share."""
    if not group.stored:
        return _unstored(context, group)
    found: list[Slot] = []
    parts = {name: _part(context, group, name) for name in group.members}
    for name in group.members:
        if name in group.stored:
            if parts[name]:
                found.append(Slot(name, _shape(context, name), parts[name]))
            continue
        home = _home(context, group, name)
        if [*map(id, parts[name])] == [*map(id, parts[home])]:
            continue
        if len(group.members) > 2 and not is_output_head(name):
            raise Unsupported(
                f"{name} and {home} share their weights but were trained apart.",
                why="Only an embedding and its output head can be stored apart.",
                hint="Untie the base with transformers, save it, and merge onto that.",
            )
        if _shape(context, name) != _shape(context, home):
            context.misfits.add(
                home,
                f"has {_shape(context, home)[0]} tokens, its tied twin {name} "
                f"{_shape(context, name)[0]}",
                "vocabulary",
            )
        created = context.names.checkpoint_name(name)
        source = context.names.checkpoint_name(home)
        whole = name in group.wholes or any(w.step in parts[name] for w in group.wholes.values())
        found.append(
            Slot(name, _shape(context, name), parts[name], created, None if whole else source)
        )
    return found


def _part(context: Context, group: _Group, member: str) -> tuple[Step, ...]:
    """All that happens to a parameter in its role, in order."""
    ensured = context.config.ensure_weight_tying
    shared_rows = group.rows(group.members[0])
    if ensured:
        # The head's factors are the embedding's: the forward pass adds their product once.
        speaking = tuple(name for name in group.members if group.low_rank(name))[:1]
    else:
        # The shared tensor gets every member's change, as in PEFT's merge.
        together = member not in group.wholes or not group.wholes[member].alone
        speaking = group.members if together else ()
    # Rows of the embedding are rows of the head too, unless that has others: PEFT ties them.
    rows = group.rows(member)
    if not rows or _indices(rows) == _indices(shared_rows):
        rows = shared_rows
    whole = _whole(group, member, ensured)
    return (
        *(() if whole is None else (whole.step,)),
        *(step for name in speaking for step in group.low_rank(name)),
        *rows,
    )


def _indices(rows: Sequence[ReplacedRows]) -> list[tuple[int, ...]]:
    return [step.indices for step in rows]


def _whole(group: _Group, member: str, ensured: bool) -> Whole | None:
    """The replacement that a role gets: its own, or one that was written into a shared tensor."""
    candidates = [group.wholes[name] for name in group.members if name in group.wholes]
    if ensured:
        return candidates[0] if candidates else None
    own = group.wholes.get(member)
    if (own is not None and own.alone) or (member in group.stored and len(group.stored) > 1):
        return own
    return next((whole for whole in candidates if not whole.alone), None)


def _unstored(context: Context, group: _Group) -> list[Slot]:
    """Parameters that the checkpoint lacks: they can only be brought whole."""
    found: list[Slot] = []
    for name in group.members:
        part = _part(context, group, name)
        if name in group.wholes:
            created = context.names.checkpoint_name(name)
            found.append(Slot(name, _shape(context, name), part, created))
        elif name in group.edits:
            context.misfits.add(name, "the checkpoint does not hold it", "missing")
    return found


def _home(context: Context, group: _Group, name: str) -> str:
    """The stored member in whose tensor this one lies."""
    tensors = {region.tensor for region in context.names.regions(name)}
    homes = [m for m in group.members if m in group.stored]
    return next((m for m in homes if context.names.checkpoint_name(m) in tensors), homes[0])


def _shape(context: Context, parameter: str) -> tuple[int, ...]:
    shape = context.shape(parameter)
    if shape is None:
        raise Unsupported(f"The model has no parameter {parameter}.")
    return shape


def _untied_config(context: Context) -> dict[str, object]:
    nested = {
        f"{name}.{_TIE}": False
        for name, value in context.base.config.items()
        if isinstance(value, dict) and cast("dict[str, Any]", value).get(_TIE) is True
    }
    return {_TIE: False, **nested}
