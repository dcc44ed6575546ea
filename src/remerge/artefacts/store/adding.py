"""Putting something into a store: files checked and taken over, then all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from remerge.artefacts import user_index
from remerge.artefacts.manifest import InputRecord
from remerge.artefacts.names import name_of_input
from remerge.artefacts.store import blobs, index, layout
from remerge.artefacts.store.describing import (
    Described,
    Found,
    describe_adapter,
    input_digest,
)
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Record, State, StoredFile, is_whole, read_state
from remerge.artefacts.store.refs import check_free
from remerge.artefacts.store.transactions import Change, changing, commit
from remerge.errors import BadInput, IntegrityError, TryAgain

# Told of the file that is being taken over.
Told = Callable[[str], None]
# A garbage collection between looking and committing takes away what was there: look again.
_TRIES = 3


@dataclass(frozen=True)
class Added:
    """What `add` did. ``names`` are those that now point to the artefact, ``notes`` what the user
    should know, ``adapters`` the ids of those that came with it."""

    id: str
    name: str
    record: Record
    already_there: bool
    nbytes: int
    adapters: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Taken:
    """One artefact, its files staged where the store does not have them."""

    record: Record
    state: State
    staged: Mapping[str, blobs.Staged]


def add(
    store: Store,
    found: Described,
    *,
    name: str | None = None,
    move: bool = False,
    link: blobs.Link = "copy",
    told: Told = lambda file: None,
) -> Added:
    """Keep what was found at a path: an output of remerge, an adapter or a base.

    With a merge the adapters come that it was made of, where they still are what it names. Every
    file is held to its manifest on the way: raises `IntegrityError` for one that is another,
    `UsageError` for a ``name`` that names another artefact, unless ``move``.
    """
    left = _left(store, found)
    for _ in range(_TRIES):
        with blobs.staging(store) as place:
            taken = _take(store, place, found, link, told)
            others, notes = _take_sources(store, place, found.sources, told)
            with changing(store):
                if not _is_there(store, (taken, *others)):
                    continue
                return _commit(store, taken, others, name, (*notes, *left), move=move)
    raise TryAgain(f"What {found.folder} shares with the store {store} was collected meanwhile.")


def _take_sources(
    store: Store, place: Path, records: Sequence[InputRecord], told: Told
) -> tuple[list[_Taken], list[str]]:
    """The adapters of a merge from where they lie now, and a sentence for each that is lost."""
    taken: list[_Taken] = []
    notes: list[str] = []
    for record in records:
        files = {file.name: file.sha256 for file in record.files}
        if index.inputs(store, input_digest(files)):
            continue
        lies = user_index.location(files)
        if lies is None:
            lost = "it is not known where it lies"
        else:
            try:
                taken.append(_take(store, place, describe_adapter(lies, record), "copy", told))
                continue
            except (BadInput, IntegrityError):
                lost = "where it lay it is gone or another one now"
        notes.append(
            f"The adapter {record.name} is not in the store, and {lost}: the merge cannot be made "
            "again from here. Keep it: remerge store add ADAPTER."
        )
    return taken, notes


def _left(store: Store, found: Described) -> list[str]:
    """A sentence on files that are not kept, the store's own apart."""
    root = store.root.resolve()
    names = [n for n in found.left if not (found.folder / n).resolve().is_relative_to(root)]
    return [f"Not kept, as no manifest names them: {_some(names)}."] if names else []


def _take(store: Store, place: Path, found: Described, link: blobs.Link, told: Told) -> _Taken:
    """Read every file, and stage those whose bytes the store does not have."""
    staged: dict[str, blobs.Staged] = {}

    def take(file: Found) -> StoredFile:
        told(file.name)
        if file.sha256 is not None and _has(store, file, file.sha256):
            taken = blobs.check(file.path, file.sha256)
        else:
            taken = blobs.stage(place, file.path, file.sha256, _link(store, file, link))
            if not _has(store, file, taken.sha256):
                staged[taken.sha256] = taken
        return StoredFile(
            name=file.name, size=taken.size, sha256=taken.sha256, derived=file.derived
        )

    files = tuple(take(file) for file in found.files)
    digests = {file.name: file.sha256 for file in files if file.name in found.inputs}
    digest = input_digest(digests) if found.inputs else None
    record = Record(
        kind=found.kind,
        digest=digest,
        form=found.form,
        single=found.single,
        manifest=found.manifest,
        merge_key=found.merge_key,
        base=found.base,
        adapters=found.adapters,
        files=tuple(sorted(files, key=lambda file: file.name)),
    )
    state = State(
        title=found.title
        or name_of_input(found.kind, found.name, found.version or (digest or record.id)[:8]),
        added=datetime.now(UTC).isoformat(timespec="milliseconds"),
        attached=tuple(take(file) for file in found.attached),
    )
    return _Taken(record, state, staged)


def _has(store: Store, file: Found, sha256: str) -> bool:
    """Whether the store has a file's bytes. Those that it shares with somebody's file, who may
    change it, are not good enough for what nothing brings back."""
    shared = not file.derived and blobs.is_shared(store, sha256)
    return not shared and blobs.is_whole(store, sha256)


def _link(store: Store, file: Found, link: blobs.Link) -> blobs.Link:
    canonical = file.sha256 is not None and store.canonical(file.sha256).exists()
    return link if file.derived and not canonical else "copy"


def _is_there(store: Store, taken: Sequence[_Taken]) -> bool:
    """Whether all bytes are staged or in the store, now that nobody else changes it."""
    staged = {digest for one in taken for digest in one.staged}
    files = (file for one in taken for file in (*one.record.files, *one.state.attached))
    return all(f.sha256 in staged or blobs.find(store, f.sha256) is not None for f in files)


def _commit(
    store: Store,
    taken: _Taken,
    others: Sequence[_Taken],
    name: str | None,
    notes: tuple[str, ...],
    *,
    move: bool,
) -> Added:
    artefact = taken.record.id
    known = store.record(artefact).exists()
    own = _own_name(store, taken, ()) if name is None else [name]
    names = dict.fromkeys(own, taken.record.id)
    was = {one: check_free(store, one, artefact, move=move) for one in names}
    for other in others:
        names |= dict.fromkeys(_own_name(store, other, names), other.record.id)
    moves: list[tuple[Path, Path]] = []
    writes: dict[Path, bytes | None] = {}
    for one in (taken, *others):
        moves += _moves(store, one)
        writes |= _writes(store, one)
        # What is taken in anew because it was shared does not stay twice.
        writes |= {
            store.derived(sha256): None
            for sha256, staged in one.staged.items()
            if (staged.path, store.canonical(sha256)) in moves and store.derived(sha256).exists()
        }
    writes |= {
        store.ref(one): f"{target}\n".encode()
        for one, target in names.items()
        if was.get(one) != target
    }
    chosen = name or (index.names_of(store, artefact) or list(names))[0]
    entry = {"action": "add", "name": chosen, "artefact": artefact, "was": was.get(chosen)}
    ids = tuple(one.record.id for one in (taken, *others))
    if moves or writes:
        commit(store, Change(entry, ids, tuple(names), moves, writes))
    nbytes = sum(staged.size for one in (taken, *others) for staged in one.staged.values())
    there = known and not any(file.sha256 in taken.staged for file in taken.record.files)
    return Added(artefact, chosen, taken.record, there, nbytes, ids[1:], notes)


def _own_name(store: Store, taken: _Taken, given: Iterable[str]) -> list[str]:
    """The name of an artefact that has none, and that nobody chose: it takes none from another,
    such as the same adapters in the same base by another recipe."""
    artefact = taken.record.id
    if index.names_of(store, artefact):
        return []
    title = taken.state.title
    there = {name.lower() for name in (*layout.names(store), *given)}
    free = (n for n in (title, f"{title[:180]}-{artefact[:8]}") if n.lower() not in there)
    return [next(free, f"{taken.record.kind}-{artefact}")]


def _moves(store: Store, taken: _Taken) -> list[tuple[Path, Path]]:
    """Where staged bytes go. What a merge shares with an adapter or a base is no longer what may be
    deleted."""
    moves: dict[Path, Path] = {}
    for file in (*taken.record.files, *taken.state.attached):
        canonical, derived = store.canonical(file.sha256), store.derived(file.sha256)
        place = derived if file.derived and not canonical.exists() else canonical
        staged = taken.staged.get(file.sha256)
        if staged is not None:
            moves[staged.path] = place
        elif not place.exists():
            moves[derived] = canonical
    return list(moves.items())


def _writes(store: Store, taken: _Taken) -> dict[Path, bytes | None]:
    """The record, if it is new or was damaged, and the state: what is known of an artefact stays
    known."""
    artefact, state = taken.record.id, taken.state
    record = {store.record(artefact): taken.record.content()}
    if not store.state(artefact).exists():
        return {**record, store.state(artefact): state.content()}
    if is_whole(store, artefact):
        record = {}
    known = read_state(store, artefact)
    attached = {file.name: file for file in (*known.attached, *state.attached)}
    new = known.model_copy(update={"attached": tuple(attached.values()), "collected": None})
    return {**record, **({} if new == known else {store.state(artefact): new.content()})}


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
