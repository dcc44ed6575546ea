"""Changing a store: all of a change, or none of it, at whatever moment the process dies.

What a change writes is first put down whole in ``journal.json``. From its rename on the change has
happened: whoever comes next carries it out again from the journal, where every step may be done
twice. Before, nothing has.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remerge.artefacts.store import index
from remerge.artefacts.store.layout import Store, alone
from remerge.errors import BadInput, RemergeError
from remerge.outputs.directory import write_durably
from remerge.sources.storage import cannot_write, sync_directory


@dataclass(frozen=True)
class Change:
    """``moves`` are files of the staging and their places, ``writes`` small files with their
    content (None: the file goes). ``entry`` is the line in the log; ``artefacts`` and ``names`` are
    those that it concerns. All paths are below the store."""

    entry: Mapping[str, Any]
    artefacts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    moves: Sequence[tuple[Path, Path]] = ()
    writes: Mapping[Path, bytes | None] = field(default_factory=dict[Path, bytes | None])


@contextmanager
def changing(store: Store) -> Generator[None]:
    """Alone in the store, with nothing left over of a killed process."""
    with alone(store):
        _recover(store)
        yield


def settle(store: Store) -> None:
    """Before reading: carry out what a killed process had begun, where the store can be written."""
    if store.journal.exists():
        with suppress(OSError, RemergeError), changing(store):
            pass


def commit(store: Store, change: Change) -> None:
    """Carry out a change; the store is ours alone (`changing`)."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    concerns = {"artefacts": list(change.artefacts), "names": list(change.names)}
    document = {
        "moves": [[_inside(store, a), _inside(store, b)] for a, b in change.moves],
        "writes": {
            _inside(store, path): None if content is None else base64.b64encode(content).decode()
            for path, content in change.writes.items()
        },
        # Last in its line, so that the line is known by its end.
        "entry": {"time": time, **change.entry, **concerns, "change": uuid.uuid4().hex},
    }
    try:
        # What the journal names must outlive a loss of power as the journal does.
        for directory in _staged(store, change):
            sync_directory(directory)
        write_durably(store.journal, json.dumps(document).encode())
        sync_directory(store.root)
    except OSError as error:
        raise cannot_write(store.root, error) from error
    _carry_out(store, document)


def _recover(store: Store) -> None:
    try:
        content = store.journal.read_bytes()
    except FileNotFoundError:
        return
    try:
        document: Any = json.loads(content)
        paths = [path for pair in document["moves"] for path in pair] + [*document["writes"]]
        entry = document["entry"]
        whole = all(isinstance(path, str) and ".." not in path for path in paths)
        whole = whole and {"change", "artefacts", "names"} <= set(entry)
    except (ValueError, TypeError, KeyError):
        whole, document = False, {}
    if not whole:
        raise BadInput(
            f"{store.journal} is damaged: the change that it tells of cannot be carried out.",
            why="The disk lost bytes, or somebody wrote there.",
            hint="Move it away; remerge store verify then says what is missing.",
        )
    _carry_out(store, document)


def read_log(store: Store) -> list[dict[str, Any]]:
    """Every change there was, oldest first."""
    if not store.log.exists():
        return []
    lines = store.log.read_bytes().rpartition(b"\n")[0].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise BadInput(
            f"{store.log} is damaged.",
            why="The disk lost bytes. Artefacts and names do not depend on it.",
        ) from error


def _carry_out(store: Store, document: Mapping[str, Any]) -> None:
    root, touched = store.root, {store.root}
    try:
        for source, target in document["moves"]:
            _move(root / source, root / target, touched)
        for name, content in document["writes"].items():
            path = root / name
            touched.add(path.parent)
            if content is None:
                path.unlink(missing_ok=True)
                continue
            _make_folder(path.parent, touched)
            write_durably(path, base64.b64decode(content))
        for directory in sorted(touched):
            sync_directory(directory)
        _log(store, document["entry"])
        store.journal.unlink()
        sync_directory(root)
    except OSError as error:
        raise cannot_write(root, error) from error
    index.follow(store)


def _staged(store: Store, change: Change) -> list[Path]:
    """The directories of the staging from which files are moved, and those above them."""
    sources = [source for source, _ in change.moves if source.is_relative_to(store.staging)]
    folders = {folder for source in sources for folder in source.parents}
    return sorted(folder for folder in folders if folder.is_relative_to(store.staging))


def _make_folder(folder: Path, touched: set[Path]) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        touched.add(folder.parent)


def _move(source: Path, target: Path, touched: set[Path]) -> None:
    touched.update((source.parent, target.parent))
    _make_folder(target.parent, touched)
    # Gone and there: an earlier try did this one.
    if source.exists() or not target.exists():
        source.rename(target)


def _log(store: Store, entry: Mapping[str, Any]) -> None:
    """Append a line, unless it is the last one; a torn line of a killed process goes first."""
    with store.log.open("a+b") as stream:
        stream.seek(0)
        content = _tail(stream)
        end = content.rfind(b"\n") + 1
        if end < len(content):
            stream.truncate(stream.seek(0, os.SEEK_END) - (len(content) - end))
        last = content[:end].rstrip(b"\n").rpartition(b"\n")[2]
        if last.endswith(f'"{entry["change"]}"}}'.encode()):
            return
        stream.write(json.dumps(entry).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _tail(stream: Any) -> bytes:
    """The end of the log, from somewhere before its last whole line."""
    size, length = stream.seek(0, os.SEEK_END), 2**16
    while True:
        stream.seek(max(0, size - length))
        content: bytes = stream.read(length)
        if length >= size or content.rstrip(b"\n").count(b"\n") > 1:
            return content
        length *= 2


def _inside(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
