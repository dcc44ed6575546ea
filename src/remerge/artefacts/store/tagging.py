"""Names given, moved and taken away; artefacts pinned."""

from __future__ import annotations

from pathlib import Path

from remerge.artefacts.names import check_name
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import read_state
from remerge.artefacts.store.refs import check_free, check_not_last, read_ref, resolve
from remerge.artefacts.store.transactions import Change, changing, commit
from remerge.errors import BadInput


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
