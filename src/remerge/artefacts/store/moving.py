"""A name moved for a reason that took time to look into, and only if it still names what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remerge.artefacts.names import check_name
from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Proof, State, StoredFile, read_record, read_state
from remerge.artefacts.store.refs import check_free, read_ref
from remerge.artefacts.store.transactions import Change, changing, commit
from remerge.errors import Locked


@dataclass(frozen=True)
class Moving:
    """A name that is moved for a reason: ``action`` and ``told`` are what the log says of it.

    ``expected`` is the id that the name had when the reason was looked into, None for one that was
    free. ``kept`` are documents in the staging that the log names by their digests, ``attached``
    files in it that come to belong to the artefact. ``proof`` says that it was derived again, and
    ``restored`` where its derived files then lie in the staging that had been collected.
    """

    action: Literal["promote", "rollback"]
    name: str
    artefact: str
    expected: str | None
    told: Mapping[str, Any]
    kept: Sequence[blobs.Staged] = ()
    attached: Sequence[tuple[StoredFile, blobs.Staged]] = ()
    proof: Proof | None = None
    restored: Sequence[tuple[StoredFile, Path]] = ()


def move_ref(store: Store, moving: Moving) -> bool:
    """Point a name to an artefact, if it still names what it named: all of it or nothing, whatever
    meanwhile dies. False where somebody else has pointed it there.

    Raises `Locked` where it names a third one now, and as `tag`.
    """
    name, artefact = check_name(moving.name), moving.artefact
    with changing(store):
        now = read_ref(store, name)
        if now == artefact:
            return False
        if now != moving.expected:
            raise Locked(
                f"{name} was changed meanwhile: it named {_shown(moving.expected)}, and names "
                f"{_shown(now)} now.",
                why="Another promotion or rollback came first, and this one knew nothing of it.",
                hint="Look at it, remerge store log " + name + "; then run the same command again.",
            )
        check_free(store, name, artefact, move=True)
        # It must be there; what was collected meanwhile can be made again.
        read_record(store, artefact)
        state = _state_after(read_state(store, artefact), moving)
        writes: dict[Path, bytes | None] = {store.ref(name): f"{artefact}\n".encode()}
        if state != read_state(store, artefact):
            writes[store.state(artefact)] = state.content()
        entry = {
            "action": moving.action,
            "name": name,
            "artefact": artefact,
            "was": now or None,
            **moving.told,
        }
        commit(store, Change(entry, (artefact,), (name,), _moves(store, moving), writes))
    return True


def _state_after(state: State, moving: Moving) -> State:
    attached = {file.name: file for file in (*state.attached, *dict(moving.attached))}
    update: dict[str, Any] = {"attached": tuple(attached.values())}
    if moving.proof is not None:
        update["proof"] = moving.proof
    if moving.restored:
        update["collected"] = None
    return state.model_copy(update=update)


def _moves(store: Store, moving: Moving) -> list[tuple[Path, Path]]:
    """Where staged bytes go; the same bytes there are replaced."""
    moves: dict[Path, Path] = {}
    for staged in (*moving.kept, *(staged for _, staged in moving.attached)):
        moves[store.canonical(staged.sha256)] = staged.path
    for file, path in moving.restored:
        if not store.canonical(file.sha256).exists():
            moves[store.derived(file.sha256)] = path
    return [(path, target) for target, path in moves.items()]


def _shown(artefact: str | None) -> str:
    return artefact[:12] if artefact else "nothing"
