"""Tied embeddings: one tensor with two roles, and an adapter that may change only one of them.

A trained copy of a role's module (modules_to_save, or its own trained tokens) leaves the other role
as it was, so the output is untied. A low-rank change of one role cannot be untied in PEFT's merge
either: there both roles get it, and the user is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.adapters.deltas import Delta, ReplacedRows
from remerge.adapters.lora.edits import Context, Edit, Whole
from remerge.errors import Unsupported

_UNTIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Slot:
    """What happens to one parameter of the output.

    ``created``: the tensor to make, None where the parameter's own regions are changed; ``source``:
    the base tensor whose values a created one starts from, if any.
    """

    parameter: str
    shape: tuple[int, ...]
    steps: tuple[Delta, ...]
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
    """Parameters that share memory; the first is the one that the checkpoint holds."""

    members: tuple[str, ...]
    edits: Mapping[str, tuple[Edit, ...]]
    wholes: Mapping[str, Whole]

    def steps(self, member: str, rows: bool) -> tuple[Delta, ...]:
        """The member's steps that replace rows, or the others."""
        return tuple(
            step
            for edit in self.edits.get(member, ())
            for step in edit.steps
            if isinstance(step, ReplacedRows) == rows
        )

    def indices(self, member: str) -> tuple[int, ...]:
        """The rows of the member that were trained by themselves."""
        return tuple(
            index
            for step in self.steps(member, rows=True)
            if isinstance(step, ReplacedRows)
            for index in step.indices
        )


def slots(context: Context, edits: Sequence[Edit]) -> Tied:
    """Decide, for every parameter that changes, which output tensors change with it."""
    found: list[Slot] = []
    config: dict[str, object] = {}
    notes: list[str] = []
    for group in _groups(context, edits):
        separate = _separate(context, group)
        if separate:
            found += _untied(context, group, separate)
            config.update(_untied_config(context))
            notes.append(
                f"{' and '.join(group.members)} were trained apart and are no longer tied: "
                f"{_UNTIED} is now false."
            )
        else:
            found += _shared(context, group)
            notes += _warning(context, group)
    return Tied(tuple(found), config, tuple(notes))


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
        ordered = sorted(members, key=lambda name: (not _is_stored(context, name), name))
        yield _Group(
            tuple(ordered) if len(members) > 1 else members,
            {name: tuple(by_parameter[name]) for name in members if name in by_parameter},
            {name: context.wholes[name] for name in members if name in context.wholes},
        )


def _is_stored(context: Context, parameter: str) -> bool:
    """Whether the checkpoint holds the parameter under a name of its own."""
    if not context.names.tied(parameter):
        return bool(context.names.regions(parameter))
    return context.names.checkpoint_name(parameter) in context.base.tensors


def _separate(context: Context, group: _Group) -> tuple[str, ...]:
    """Members that were trained as copies of their own; () where all stay tied."""
    if len(group.members) == 1 or context.config.ensure_weight_tying:
        return ()
    trained = [name for name in group.members if name in group.wholes and group.wholes[name].alone]
    rows = {name: group.indices(name) for name in group.members if group.indices(name)}
    # Rows of the embedding are rows of the head too, unless that has others of its own: PEFT ties
    # the token adapters.
    first = rows.get(group.members[0])
    if rows and any(indices != first for indices in rows.values()):
        trained += [name for name in rows if name not in trained]
    return tuple(trained)


def _untied(context: Context, group: _Group, separate: tuple[str, ...]) -> list[Slot]:
    if len(group.members) > 2:
        raise Unsupported(
            f"{', '.join(separate)} trained apart from {len(group.members) - 1} others that share "
            "its weights.",
            why="config.json can untie an embedding from its head, but not more roles than two.",
            hint="Untie the base with transformers, save it, and merge onto that.",
        )
    found: list[Slot] = []
    for member in group.members:
        steps = group.steps(member, rows=False) + group.steps(member, rows=True)
        whole = group.wholes.get(member)
        if whole is not None:
            steps = (whole.step, *steps)
        shape = _shape(context, member)
        if _is_stored(context, member):
            if steps:
                found.append(Slot(member, shape, steps))
            continue
        source = None if whole is not None else _shared_tensor(context, member)
        name = context.names.checkpoint_name(member)
        found.append(Slot(member, shape, steps, created=name, source=source))
    return found


def _shared(context: Context, group: _Group) -> list[Slot]:
    brought = [group.wholes[name] for name in group.members if name in group.wholes]
    speaking = [name for name in group.members if group.steps(name, rows=False)]
    if context.config.ensure_weight_tying:
        # The head's factors are the embedding's: the forward pass adds their product once.
        speaking = speaking[:1]
    # Tied rows may be stored once for each role, with equal values.
    rows = [name for name in group.members if group.indices(name)][:1]
    steps = (
        *(whole.step for whole in brought[:1]),
        *(step for name in speaking for step in group.steps(name, rows=False)),
        *(step for name in rows for step in group.steps(name, rows=True)),
    )
    if not steps:
        return []
    shape = brought[0].shape if brought else _shape(context, group.members[0])
    for other in brought[1:]:
        if other.shape != shape:
            context.misfits.add(
                other.parameter, f"has shape {other.shape}, its tied twin {shape}", "vocabulary"
            )
    stored = [name for name in group.members if _is_stored(context, name)]
    if stored:
        return [Slot(name, shape, steps) for name in stored]
    first = group.members[0]
    if not brought:
        for edit in group.edits.get(first, ()):
            context.misfits.add(edit.parameter, "the checkpoint does not hold it", "missing")
        return []
    return [Slot(first, shape, steps, created=context.names.checkpoint_name(first))]


def _warning(context: Context, group: _Group) -> list[str]:
    speaking = [name for name in group.members if group.steps(name, rows=False)]
    if len(group.members) == 1 or not speaking or context.config.ensure_weight_tying:
        return []
    others = [name for name in group.members if name not in speaking]
    rest = f"so {' and '.join(others)} changed too" if others else "so each got both changes"
    return [
        f"{' and '.join(speaking)} is tied: in training the change acted in its own role only, but "
        f"the merged tensor is shared, {rest} (as in PEFT's merge_and_unload)."
    ]


def _shape(context: Context, parameter: str) -> tuple[int, ...]:
    shape = context.shape(parameter)
    if shape is None:
        raise Unsupported(f"The model has no parameter {parameter}.")
    return shape


def _shared_tensor(context: Context, parameter: str) -> str:
    regions = context.names.regions(parameter)
    if len(regions) != 1:
        raise Unsupported(f"{parameter} is to be untied, but does not lie in one tensor.")
    return regions[0].tensor


def _untied_config(context: Context) -> dict[str, object]:
    nested = {
        f"{name}.{_UNTIED}": False
        for name, value in context.base.config.items()
        if isinstance(value, dict) and cast("dict[str, Any]", value).get(_UNTIED) is True
    }
    return {_UNTIED: False, **nested}
