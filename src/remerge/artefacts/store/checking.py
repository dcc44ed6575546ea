"""Reading everything that a store holds, and saying what is not what it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.layout import Store, names, target_of
from remerge.artefacts.store.records import all_records, read_record, read_state
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.transactions import read_log, settle
from remerge.errors import RemergeError

Report = Callable[[int, int, str], None]
# An artefact's id, and whether the bytes that it needs can be derived again.
_Needing = tuple[str, bool]
_TRIES = 3


@dataclass(frozen=True)
class Damage:
    """Something that is not what it should be: where, what, and what brings it back."""

    what: str
    artefact: str | None
    hint: str | None = None


@dataclass(frozen=True)
class Checked:
    """What a check read: artefacts, files and bytes, and the damage that it found."""

    artefacts: int
    files: int
    nbytes: int
    damage: tuple[Damage, ...]


def verify(store: Store, targets: Sequence[str] = (), report: Report | None = None) -> Checked:
    """Read every byte of some artefacts, or of all, and hold it to its digest; also names and log.

    Of a collected artefact the files are read that stayed. Nothing is changed.
    """
    settle(store)
    ids = [resolve(store, target) for target in targets] or all_records(store)
    damage = [] if targets else [*_names(store), *_log(store)]
    wanted: dict[str, tuple[int, list[_Needing]]] = {}
    for artefact in ids:
        try:
            record, state = read_record(store, artefact), read_state(store, artefact)
        except RemergeError as error:
            damage.append(Damage(error.what, artefact, "Restore the file from a backup."))
            continue
        for file in (*record.files, *state.attached):
            if not (file.derived and state.collected is not None):
                _, needing = wanted.setdefault(file.sha256, (file.size, []))
                needing.append((artefact, file.derived))
    total = sum(size for size, _ in wanted.values())
    done = 0
    for sha256, (size, needing) in wanted.items():
        lacking = _lacking(store, sha256, needing)
        if lacking is not None:
            artefact, derived = lacking
            damage.append(_damaged(store, sha256, artefact, derived=derived))
        done += size
        if report is not None:
            report(done, total, sha256[:12])
    return Checked(len(ids), len(wanted), total, tuple(damage))


def _lacking(store: Store, sha256: str, needing: Sequence[_Needing]) -> _Needing | None:
    """One of those that need these bytes and do not have them; None where all is well. A collection
    or a rebuilding that runs meanwhile is looked at again."""
    found: _Needing | None = None
    for _ in range(_TRIES):
        if blobs.is_whole(store, sha256):
            return None
        still = [
            (artefact, derived)
            for artefact, derived in needing
            if not (derived and read_state(store, artefact).collected is not None)
        ]
        if not still:
            return None
        found = still[0]
    return found


def _damaged(store: Store, sha256: str, artefact: str, *, derived: bool) -> Damage:
    path: Path | None = blobs.find(store, sha256)
    said = f"{path} is damaged" if path is not None else f"The blob {sha256} is missing"
    names = index.names_of(store, artefact) or [artefact[:12]]
    hint = (
        f"Run: remerge store rebuild {names[0]}"
        if derived
        else "Add the same file again: remerge store add PATH"
    )
    return Damage(f"{said}; {names[0]} needs it.", artefact, f"{hint}.")


def _names(store: Store) -> list[Damage]:
    """Names that point to nothing."""
    found: list[Damage] = []
    for name in names(store):
        target = target_of(store, name)
        if not target or not store.record(target).exists():
            hint = f"Point it somewhere: remerge store tag ARTEFACT {name} --move."
            found.append(Damage(f"The name {name} points to nothing.", None, hint))
    return found


def _log(store: Store) -> list[Damage]:
    try:
        read_log(store)
    except RemergeError as error:
        return [Damage(error.what, None)]
    return []
