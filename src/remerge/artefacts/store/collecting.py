"""Collecting: deleting bytes that base and adapters bring back, once that is proved.

Nothing here knows how to delete anything but derived blobs: those of adapters, bases, manifests and
side files lie elsewhere (`layout`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from remerge.artefacts.rederiving import check_now
from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.index import Row
from remerge.artefacts.store.inputs import open_stored
from remerge.artefacts.store.layout import Store, names
from remerge.artefacts.store.rebuilding import Means, rebuild, remake
from remerge.artefacts.store.records import (
    DERIVED,
    Collected,
    Record,
    State,
    all_records,
    read_record,
    read_state,
)
from remerge.artefacts.store.ref_history import promoted
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.retention import Retention, reasons
from remerge.artefacts.store.transactions import Change, changing, commit, read_log
from remerge.artefacts.store.words import a
from remerge.errors import IntegrityError, RemergeError, UsageError
from remerge.sources.storage import sync_directory

Action = Literal["collect", "keep"]


@dataclass(frozen=True)
class Decided:
    """What becomes of one artefact, why, and how many bytes on disk that frees. ``seconds`` is how
    long making it again took, None where that was not tried yet."""

    row: Row
    action: Action
    why: str
    nbytes: int = 0
    seconds: float | None = None
    rebuildable: bool = True


@dataclass(frozen=True)
class Collection:
    """All decisions; ``nbytes`` is what goes from the disk, ``swept`` the part that no artefact
    had."""

    decided: tuple[Decided, ...]
    nbytes: int
    swept: int
    dry_run: bool


def collect(
    store: Store,
    retention: Retention,
    means: Means,
    *,
    targets: Sequence[str] = (),
    dry_run: bool = False,
    force: bool = False,
) -> Collection:
    """Collect derived artefacts that nothing keeps; ``targets`` alone, if any are named.

    Each must be derivable now: base and adapters are read whole, and the artefact is derived once
    if that was not done before. What cannot be is kept, and the reason told; with ``force`` it is
    deleted, and its record says so. Raises `UsageError` for a target that is not derived.
    """
    with changing(store):
        rows = index.rows(store)
        if {row.id for row in rows} != set(_known(store)):
            index.rebuild(store)
            rows = index.rows(store)
    rows = [row for row in rows if row.kind in DERIVED and not row.collected]
    kept = reasons(rows, retention)
    if targets:
        chosen = {_derived(store, target) for target in targets}
        rows = [row for row in rows if row.id in chosen]
    decided = [
        Decided(row, "keep", kept[row.id])
        if row.id in kept
        else _decide(store, row, means, dry_run=dry_run, force=force)
        for row in rows
    ]
    with changing(store):
        if dry_run:
            return _measured(store, decided, dry_run=True)
        decided = [one if one.action == "keep" else _again(store, one) for one in decided]
        measured = _measured(store, decided, dry_run=False)
        _commit(store, [one for one in measured.decided if one.action == "collect"])
        _delete(store, _unused(store))
    return measured


def _known(store: Store) -> dict[str, tuple[Record, State]]:
    """All artefacts by their ids; raises `IntegrityError` for one that cannot be read: its bytes
    would be taken for those that nobody needs."""
    states = {path.stem for path in (store.root / "states").glob("??/*.json")}
    artefacts = states | set(all_records(store))
    try:
        return {one: (read_record(store, one), read_state(store, one)) for one in artefacts}
    except RemergeError as error:
        raise IntegrityError(
            error.what,
            why="What it needs could be taken for what nobody needs: nothing is collected.",
            hint="Restore the file from a backup; remerge store verify names all that is damaged.",
        ) from error


def _derived(store: Store, target: str) -> str:
    artefact = resolve(store, target)
    record = read_record(store, artefact)
    if not record.derived:
        raise UsageError(
            f"{target} is {a(record.kind)}: no command deletes one.",
            why="What was made from it could not be made again.",
        )
    return artefact


def _decide(store: Store, row: Row, means: Means, *, dry_run: bool, force: bool) -> Decided:
    """Whether an artefact can be derived now: all inputs read, and proved once."""
    try:
        _check_adapters(store, row)
        if row.seconds is None and not dry_run:
            # Reads every input as well.
            seconds = rebuild(store, row.id, means).seconds
            return Decided(row, "collect", "proved now", seconds=seconds)
        _check(store, read_record(store, row.id), means)
    except RemergeError as error:
        needed = _needed(store, row)
        if force and needed is None:
            return Decided(row, "collect", f"forced: {error.what}", rebuildable=False)
        return Decided(row, "keep", needed or f"cannot be made again now: {error.what}")
    why = "to be proved first" if row.seconds is None else "base and adapters verified, proved"
    return Decided(row, "collect", why, seconds=row.seconds)


def _check_adapters(store: Store, row: Row) -> None:
    """The adapters that the store has must be whole: the user's own copies may go tomorrow."""
    for source in read_record(store, row.id).adapters:
        for artefact in index.inputs(store, source.digest):
            files = read_record(store, artefact).files
            damaged = [file.name for file in files if not blobs.is_whole(store, file.sha256)]
            if damaged:
                raise IntegrityError(
                    f"The adapter {source.name} is damaged in the store ({damaged[0]}).",
                    hint="Add it again: remerge store add ADAPTER.",
                )


def _check(store: Store, record: Record, means: Means) -> None:
    with blobs.staging(store) as place:
        check_now(
            open_stored(
                store,
                record,
                place,
                lambda base, out: remake(store, read_record(store, base), out, means),
            )
        )


def _needed(store: Store, row: Row) -> str | None:
    """Why not even force deletes it: something else is made from it, or a rollback needs it."""
    digest = read_record(store, row.id).digest
    for other in index.rows(store):
        base = read_record(store, other.id).base if other.kind in DERIVED else None
        if base is not None and base.digest == digest and other.id != row.id:
            return f"{(other.names or (other.title,))[0]} is made from it"
    name = promoted(read_log(store), names(store)).get(row.id)
    return None if name is None else f"{name} named it, and it cannot be made again now"


def _again(store: Store, one: Decided) -> Decided:
    """The same decision, now that nobody else changes the store."""
    state = read_state(store, one.row.id)
    if state.pinned:
        return Decided(one.row, "keep", "pinned")
    if state.collected is not None:
        return Decided(one.row, "keep", "collected meanwhile")
    if one.rebuildable and state.proof is None:
        return Decided(one.row, "keep", "changed meanwhile")
    return one


def _measured(store: Store, decided: Iterable[Decided], *, dry_run: bool) -> Collection:
    """What each collection frees: bytes that it shares with what stays are not freed, those that
    two share count for the first."""
    decided = list(decided)
    going = {one.row.id for one in decided if one.action == "collect"}
    staying = {
        file.sha256
        for row in index.rows(store)
        if row.id not in going and not row.collected
        for file in read_record(store, row.id).files
    }
    counted: set[str] = set()
    measured: list[Decided] = []
    for one in decided:
        nbytes = 0
        if one.action == "collect":
            for file in read_record(store, one.row.id).files:
                path = store.derived(file.sha256)
                if file.derived and file.sha256 not in staying | counted and path.exists():
                    counted.add(file.sha256)
                    nbytes += file.size
        measured.append(Decided(one.row, one.action, one.why, nbytes, one.seconds, one.rebuildable))
    swept = sum(path.stat().st_size for path in _unused(store))
    total = sum(one.nbytes for one in measured) + swept
    return Collection(tuple(measured), total, swept, dry_run)


def _commit(store: Store, collected: Sequence[Decided]) -> None:
    """Say that the bytes are gone, all at once, before they go."""
    if not collected:
        return
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    writes: dict[Path, bytes | None] = {}
    for one in collected:
        gone = Collected(time=time, nbytes=one.nbytes, rebuildable=one.rebuildable)
        state = read_state(store, one.row.id).model_copy(update={"collected": gone})
        writes[store.state(one.row.id)] = state.content()
    ids = tuple(one.row.id for one in collected)
    entry = {"action": "gc", "name": f"{len(ids)} artefacts", "artefact": ids[0]}
    commit(store, Change(entry, ids, writes=writes))


def _unused(store: Store) -> list[Path]:
    """Derived blobs that no artefact has whose bytes should be there, or that lie here twice.

    The records say so themselves: an index that is wrong must not cost a byte.
    """
    blobs_there = {path.name: path for path in (store.root / "blobs" / "derived").glob("??/*")}
    used = {
        file.sha256
        for record, state in _known(store).values()
        for file in (*record.files, *state.attached)
        if not (file.derived and state.collected is not None)
    }
    twice = {digest for digest in used & set(blobs_there) if store.canonical(digest).exists()}
    used -= {digest for digest in twice if blobs.is_whole(store, digest)}
    return [path for digest, path in sorted(blobs_there.items()) if digest not in used]


def _delete(store: Store, unused: Iterable[Path]) -> None:
    for path in unused:
        store.derived(path.name).unlink(missing_ok=True)
        sync_directory(path.parent)
