"""A name moved back to what it named before, once that is seen to be whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remerge.artefacts.names import check_name
from remerge.artefacts.store import checking, index
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.moving import Moving, move_ref
from remerge.artefacts.store.rebuilding import Means, rebuild
from remerge.artefacts.store.records import read_record, read_state
from remerge.artefacts.store.ref_history import History, Stay, history_of
from remerge.artefacts.store.refs import check_free, read_ref, resolve
from remerge.artefacts.store.transactions import read_log, settle
from remerge.artefacts.store.words import status_of
from remerge.errors import BadInput, IntegrityError, RemergeError, UsageError

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Past:
    """One artefact that the name named: ``back`` is the number for ``--to``, 0 what it names now,
    None what only its id leads to. ``status`` says where its bytes are."""

    back: int | None
    stay: Stay
    names: tuple[str, ...]
    status: str


@dataclass(frozen=True)
class RolledBack:
    """``name`` names ``id`` again, and named ``was``; ``rebuilt`` where the bytes had been
    collected and were derived again. ``moved`` is false where it named that already."""

    name: str
    id: str
    was: str
    rebuilt: bool
    moved: bool
    files: int
    nbytes: int


def _silent(done: int, total: int, what: str) -> None:
    pass


def past_of(store: Store, name: str) -> list[Past]:
    """Everything that a name named, the newest first.

    Raises `BadInput` for a name that never was.
    """
    settle(store)
    found = _history(store, name)
    steps = {id(stay): number for number, stay in enumerate(found.before, 1)}
    return [
        Past(
            back=0 if stay is found.now else steps.get(id(stay)),
            stay=stay,
            names=tuple(index.names_of(store, stay.artefact)),
            status=_status(store, stay.artefact),
        )
        for stay in reversed(found.all)
    ]


def roll_back(
    store: Store, name: str, to: int | str, means: Means, *, report: Report = _silent
) -> RolledBack:
    """Point ``name`` to what it named ``to`` moves ago, or to an artefact that it once named.

    Every byte of that is read first; what was collected is derived again and put back into the
    store. Raises `IntegrityError` where it is damaged, naming an older one that is whole, and what
    `remerge.artefacts.store.rebuilding.rebuild` raises where it cannot be made again; `UsageError`
    where the name names nothing, or named nothing before; `Locked` where it was changed meanwhile.
    """
    check_name(name)
    settle(store)
    was = read_ref(store, name)
    history = _history(store, name)
    if not was:
        raise UsageError(
            f"{name} names nothing now.",
            why="It was taken away, or its file is damaged.",
            hint=f"See what it named: remerge rollback --of {name} --list; then remerge promote "
            f"ARTEFACT --to {name}.",
        )
    artefact, back = _wanted(store, name, was, history, to)
    if artefact == was:
        return RolledBack(name, artefact, was, rebuilt=False, moved=False, files=0, nbytes=0)
    check_free(store, name, artefact, move=True)
    try:
        rebuilt, checked = _whole(store, artefact, means, report)
    except RemergeError as error:
        raise _refused(store, name, artefact, history, was, error) from error
    told = {"back": back, "steps": {"verify": {"state": "passed", "rebuilt": rebuilt}}}
    moved = move_ref(store, Moving("rollback", name, artefact, was, told))
    return RolledBack(name, artefact, was, rebuilt, moved, checked.files, checked.nbytes)


def _history(store: Store, name: str) -> History:
    found = history_of(check_name(name), read_log(store))
    if not found.all and read_ref(store, name) is None:
        raise BadInput(
            f"The store {store} has no name {name!r}, and never had.",
            hint=f"Promote something: remerge promote NAME --to {name}.",
        )
    return found


def _wanted(store: Store, name: str, was: str, history: History, to: int | str) -> tuple[str, int]:
    """The artefact to go back to, and over how many moves: none for one that is not before the
    name's present any more."""
    if isinstance(to, int):
        if to < 1:
            raise UsageError(f"--to {to} is no number of moves.", hint="Give 1 or more.")
        if not history.before:
            raise UsageError(
                f"{name} named nothing before {was[:12]}.",
                hint=f"Promote another artefact: remerge promote NAME --to {name}.",
            )
        if to > len(history.before):
            raise UsageError(
                f"{name} named {len(history.before)} artefacts before this one, not {to}.",
                hint=f"See them: remerge rollback --of {name} --list.",
            )
        return history.before[to - 1].artefact, to
    artefact = resolve(store, to)
    steps = (n for n, stay in enumerate(history.before, 1) if stay.artefact == artefact)
    back = next(steps, 0)
    if artefact != was and not back and artefact not in {stay.artefact for stay in history.all}:
        raise UsageError(
            f"{name} never named {to}.",
            why="A rollback leads to what was there before, and shows nothing of what is new.",
            hint=f"Promote it: remerge promote {to} --to {name}.",
        )
    return artefact, back


def _whole(
    store: Store, artefact: str, means: Means, report: Report
) -> tuple[bool, checking.Checked]:
    """Read every byte, after deriving it again where it was collected."""
    rebuilt = read_state(store, artefact).collected is not None
    if rebuilt:
        rebuild(store, artefact, means)
    checked = checking.verify(
        store, [artefact], lambda done, total, file: report(done, total, "bytes")
    )
    if checked.damage:
        first = checked.damage[0]
        raise IntegrityError(first.what, hint=first.hint)
    return rebuilt, checked


def _refused(
    store: Store,
    name: str,
    artefact: str,
    history: History,
    was: str,
    error: RemergeError,
) -> RemergeError:
    """The failure, with an older artefact that is whole, if there is one."""
    others = [stay.artefact for stay in history.before if stay.artefact not in (artefact, was)]
    older = next((one for one in dict.fromkeys(others) if _is_whole(store, one)), None)
    hint = error.hint or f"Add the same files again: remerge store add PATH; {name} is as it was."
    if older is not None:
        hint += f" Or go to {older[:12]}, which is whole: remerge rollback --of {name} --to "
        hint += f"{older[:12]}."
    return type(error)(
        f"{name} was not moved back to {artefact[:12]}: {error.what}", why=error.why, hint=hint
    )


def _is_whole(store: Store, artefact: str) -> bool:
    """Whether all its bytes are here, or are said to come back."""
    try:
        state = read_state(store, artefact)
    except RemergeError:
        return False
    if state.collected is not None and not state.collected.rebuildable:
        return False
    return not checking.verify(store, [artefact]).damage


def _status(store: Store, artefact: str) -> str:
    try:
        read_record(store, artefact)
        state = read_state(store, artefact)
    except RemergeError:
        return "damaged"
    return status_of(
        collected=state.collected is not None,
        rebuildable=state.collected is None or state.collected.rebuildable,
        seconds=None if state.proof is None else state.proof.seconds,
    )
