"""Names given, moved and taken away, by hand or after a promotion; artefacts pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remerge.artefacts.names import check_name
from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import StoredFile, read_record, read_state
from remerge.artefacts.store.refs import check_free, check_not_last, read_ref, resolve
from remerge.artefacts.store.transactions import Change, changing, commit
from remerge.errors import BadInput, Locked


def tag(store: Store, target: str, name: str, *, move: bool = False) -> tuple[str, str | None]:
    """Point ``name`` to the artefact that ``target`` means; its id, and what the name meant before.

    Raises `UsageError` where it names another artefact, unless ``move``.
    """
    check_name(name)
    with changing(store):
        artefact = resolve(store, target)
        was = check_free(store, name, artefact, move=move)
        if was != artefact:
            action = "tag" if was is None else "move"
            entry = {"action": action, "name": name, "artefact": artefact, "was": was}
            writes: dict[Path, bytes | None] = {store.ref(name): f"{artefact}\n".encode()}
            commit(store, Change(entry, (artefact,), (name,), writes=writes))
    return artefact, was


@dataclass(frozen=True)
class Moving:
    """A name that is moved for a reason: ``action`` and ``told`` are what the log says of it.

    ``expected`` is the id that the name had when the reason was looked into, None for one that was
    free. ``kept`` are documents in the staging that the log names by their digests, ``attached``
    files in it that come to belong to the artefact.
    """

    action: Literal["promote", "rollback"]
    name: str
    artefact: str
    expected: str | None
    told: Mapping[str, Any]
    kept: Sequence[blobs.Staged] = ()
    attached: Sequence[tuple[StoredFile, blobs.Staged]] = ()


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
        state = read_state(store, artefact)
        moves: dict[Path, Path] = {}
        for staged in (*moving.kept, *(staged for _, staged in moving.attached)):
            if not blobs.is_whole(store, staged.sha256):
                moves[staged.path] = store.canonical(staged.sha256)
        writes: dict[Path, bytes | None] = {store.ref(name): f"{artefact}\n".encode()}
        if moving.attached:
            files = {file.name: file for file in (*state.attached, *dict(moving.attached))}
            content = state.model_copy(update={"attached": tuple(files.values())}).content()
            writes[store.state(artefact)] = content
        entry = {
            "action": moving.action,
            "name": name,
            "artefact": artefact,
            "was": now or None,
            **moving.told,
        }
        commit(store, Change(entry, (artefact,), (name,), list(moves.items()), writes))
    return True


def _shown(artefact: str | None) -> str:
    return artefact[:12] if artefact else "nothing"


def remove(store: Store, name: str) -> str:
    """Take a name away; the id of the artefact that had it, "" of a name that was damaged.

    A merge without names is what `remerge store gc` collects first. Raises `UsageError` for the
    last name of an adapter or a base, of which nothing is ever deleted.
    """
    with changing(store):
        artefact = read_ref(store, name)
        if artefact is None:
            raise BadInput(
                f"The store {store} has no name {name!r}.", hint="remerge store ls lists them."
            )
        if not artefact:
            # Its file is damaged: it points to nothing, and nothing loses it.
            entry = {"action": "rm", "name": name, "artefact": "", "was": None}
            commit(store, Change(entry, (), (name,), writes={store.ref(name): None}))
            return ""
        check_not_last(store, name, artefact)
        entry = {"action": "rm", "name": name, "artefact": artefact, "was": artefact}
        commit(store, Change(entry, (artefact,), (name,), writes={store.ref(name): None}))
    return artefact


def pin(store: Store, target: str, *, pinned: bool = True) -> str:
    """Keep an artefact's bytes whatever a collection would say, or let go of them; its id."""
    with changing(store):
        artefact = resolve(store, target)
        state = read_state(store, artefact)
        if state.pinned != pinned:
            action = "pin" if pinned else "unpin"
            entry = {"action": action, "name": target, "artefact": artefact}
            content = state.model_copy(update={"pinned": pinned}).content()
            commit(store, Change(entry, (artefact,), writes={store.state(artefact): content}))
    return artefact
