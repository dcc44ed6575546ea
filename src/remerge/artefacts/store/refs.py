"""Names that point to artefacts, and what a user may write to mean one."""

from __future__ import annotations

import difflib
import re

from remerge.artefacts.names import check_name
from remerge.artefacts.store import index
from remerge.artefacts.store.layout import Store, names, target_of
from remerge.artefacts.store.records import DERIVED, read_record
from remerge.artefacts.store.words import a
from remerge.errors import BadInput, UsageError

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


def read_ref(store: Store, name: str) -> str | None:
    """The id that a name points to; None for a name that is free, nothing ("") for one whose file
    is damaged."""
    return target_of(store, check_name(name))


def resolve(store: Store, text: str) -> str:
    """The id of the artefact that a name, an id, a merge key or the beginning of one means.

    Raises `BadInput` where there is none, `UsageError` where there are several.
    """
    digits = _PREFIX.fullmatch(text)
    if digits is None:
        found = read_ref(store, text)
        if found:
            return found
        if found is not None:
            raise BadInput(
                f"The name {text} points to nothing: its file is damaged.",
                hint=f"Point it somewhere: remerge store tag ARTEFACT {text}.",
            )
        raise _unknown(store, text)
    ids = index.beginning(store, digits[1])
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise _unknown(store, text)
    raise UsageError(
        f"{text} is the beginning of {len(ids)} artefacts: {', '.join(i[:12] for i in ids[:5])}.",
        hint="Write more digits, or a name.",
    )


def check_free(store: Store, name: str, artefact: str, *, move: bool) -> str | None:
    """The id that a name points to now, where it may be pointed to ``artefact``.

    Raises `UsageError` where it points to another one and ``move`` does not allow that, where it is
    the last name of what nothing brings back, and where another name is the same but for capitals,
    which some file systems cannot tell apart.
    """
    now = read_ref(store, name)
    if not now:
        alike = [one for one in names(store) if one != name and one.lower() == name.lower()]
        if alike:
            raise UsageError(f"{name} differs from the name {alike[0]} in capitals alone.")
        return None
    if now != artefact and not move:
        raise UsageError(
            f"{name} names another artefact, {now[:12]}.",
            why="Somebody may rely on what it names.",
            hint="Choose another name, or add --move; the log keeps what it named.",
        )
    if now != artefact:
        check_not_last(store, name, now)
    return now


def check_not_last(store: Store, name: str, artefact: str) -> None:
    """Raises `UsageError` for the last name of an adapter or a base, of which nothing is ever
    deleted."""
    if not store.record(artefact).exists():
        return
    kind = read_record(store, artefact).kind
    if kind not in DERIVED and index.names_of(store, artefact) == [name]:
        raise UsageError(
            f"{name} is the last name of {a(kind)}, which no command deletes.",
            why="What was made from it could not be made again.",
            hint=f"Give it another one first: remerge store tag {name} OTHER.",
        )


def _unknown(store: Store, text: str) -> BadInput:
    near = difflib.get_close_matches(text, names(store), n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "remerge store ls lists what it holds."
    return BadInput(f"The store {store} has no artefact {text!r}.", hint=hint)
