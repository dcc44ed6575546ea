"""What a user names to be served: paths, artefacts of the store, repositories on the Hub, and how
several are written as one (``BASE+ADAPTER+ADAPTER``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remerge.artefacts.store.layout import Store, open_store, place_of_store
from remerge.artefacts.store.materializing import materialize
from remerge.artefacts.store.rebuilding import Means
from remerge.artefacts.store.records import Record, read_record, read_state
from remerge.artefacts.store.refs import resolve as resolve_name
from remerge.errors import BadInput, UsageError
from remerge.serving.kept import place_for
from remerge.sources.gguf_header import is_gguf
from remerge.sources.references import resolve

Role = Literal["base", "adapter"]


@dataclass(frozen=True)
class Found:
    """A directory or a GGUF file, and what clients would call it."""

    path: Path
    name: str

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def split(text: str) -> list[str]:
    """The parts of ``BASE+ADAPTER``. A path that exists is one part, whatever its name has."""
    words, found = text.split("+"), list[str]()
    while words:
        lengths = range(len(words), 0, -1)
        length = next((n for n in lengths if _exists("+".join(words[:n]))), 1)
        found.append("+".join(words[:length]))
        words = words[length:]
    if "" in found:
        raise UsageError(f"{text!r} has an empty part.", hint="Write BASE+ADAPTER.")
    return found


def find(text: str, role: Role, means: Means, *, store: str | None, progress: bool) -> Found:
    """A path that exists, else an artefact of the store, else a repository on the Hub.

    Artefacts are laid out in the user's cache directory, where they stay. Raises `BadInput` for
    what is none of these, and as `materialize` and `resolve`.
    """
    if _exists(text):
        path = Path(text).expanduser()
        if path.is_file() and is_gguf(path):
            return Found(path.absolute(), path.stem)
    elif (stored := _stored(text, store, means)) is not None:
        return stored
    reference = resolve(text, role, progress=progress)
    return Found(reference.path.absolute(), _plain(reference.name))


def _stored(text: str, given: str | None, means: Means) -> Found | None:
    """An artefact by name, id or merge key; None where it must be something else."""
    if "/" in text:
        return None
    if given is None and not (place_of_store(given) / "store.json").is_file():
        raise BadInput(
            f"{text!r} is no path that exists, and there is no store that could have it.",
            hint="Check the spelling; repositories on the Hub are written org/name.",
        )
    store = open_store(given)
    artefact = resolve_name(store, text)
    record = read_record(store, artefact)
    folder = place_for("artefacts", str(store.root.resolve()), artefact) / "files"
    if not _is_complete(store, artefact, record, folder):
        # Large files are shared with the store: they are read-only, and nobody writes here.
        materialize(store, artefact, folder, means, link="hard", overwrite=True)
    path = folder if record.single is None else folder / record.single
    is_digest = artefact.startswith(text.removeprefix("sha256:"))
    return Found(path, artefact[:12] if is_digest else text)


def _is_complete(store: Store, artefact: str, record: Record, folder: Path) -> bool:
    """Whether an earlier run laid it out and all of it is still there."""
    files = (*record.files, *read_state(store, artefact).attached)
    try:
        return all((folder / file.name).stat().st_size == file.size for file in files)
    except OSError:
        return False


def _plain(name: str) -> str:
    """A name that fits into an option: no spaces, and none of what options end or divide with."""
    return "".join(c if c.isprintable() and c not in " ,=" else "-" for c in name) or "model"


def _exists(text: str) -> bool:
    try:
        return bool(text) and os.path.lexists(Path(text).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False
