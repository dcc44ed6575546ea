"""Bytes by their digest: on their way in (staged), and where they lie.

Blobs are read-only files. A reflink shares the disk's blocks and nothing else; where the file
system has none, bytes are copied, or linked where that is asked for: whoever then changes the one
file changes the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.transactions import changing
from remerge.errors import IntegrityError
from remerge.sources.storage import cannot_write, file_digest, sync_directory

Link = Literal["copy", "hard"]
_FICLONE = 0x40049409
_BLOCK = 2**22
_LOCK = ".lock"


@dataclass(frozen=True)
class Staged:
    """A file on its way into the store."""

    path: Path
    size: int
    sha256: str


def find(store: Store, sha256: str) -> Path | None:
    """Where the bytes of this digest lie."""
    for path in (store.canonical(sha256), store.derived(sha256)):
        if path.exists():
            return path
    return None


def is_whole(store: Store, sha256: str) -> bool:
    """Whether the bytes are there, and are those of the digest."""
    path = find(store, sha256)
    return path is not None and file_digest(path) == sha256


@contextmanager
def staging(store: Store) -> Generator[Path]:
    """A directory for what is on its way in; it goes in the end, that of a killed process too."""
    place = store.staging / uuid.uuid4().hex
    with changing(store):
        _sweep(store)
        try:
            place.mkdir(parents=True)
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(place, error) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield place
    finally:
        # A change that has happened but could not be carried out still needs what is here.
        if not store.journal.exists():
            shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def stage(place: Path, source: Path, expected: str | None, link: Link = "copy") -> Staged:
    """Take a file over into the staging and make it durable.

    Raises `IntegrityError` where its digest is not the ``expected`` one.
    """
    target = place / uuid.uuid4().hex
    try:
        digest = _take(source, target, link)
    except FileNotFoundError as error:
        raise _missing(source) from error
    except OSError as error:
        raise cannot_write(target, error) from error
    if expected is not None and digest != expected:
        raise _other(source)
    return Staged(target, target.stat().st_size, digest)


def check(source: Path, expected: str) -> Staged:
    """Hold a file to its digest where its bytes are in the store already; it stays where it is."""
    try:
        if file_digest(source) != expected:
            raise _other(source)
    except FileNotFoundError as error:
        raise _missing(source) from error
    return Staged(source, source.stat().st_size, expected)


def stage_bytes(place: Path, content: bytes) -> Staged:
    """The same for bytes."""
    target = place / uuid.uuid4().hex
    try:
        with target.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        target.chmod(0o444)
    except OSError as error:
        raise cannot_write(target, error) from error
    return Staged(target, len(content), hashlib.sha256(content).hexdigest())


def is_shared(store: Store, sha256: str) -> bool:
    """Whether the only file with these bytes is a link that somebody else has, too."""
    path = find(store, sha256)
    return path is not None and path == store.derived(sha256) and path.stat().st_nlink > 1


def give(store: Store, sha256: str, target: Path, link: Link = "copy") -> None:
    """Put the bytes of a digest at ``target`` and make them durable.

    Raises `FileNotFoundError` where they are not there, `IntegrityError` where they are others.
    """
    path = find(store, sha256)
    if path is None:
        raise FileNotFoundError(sha256)
    # What nothing can bring back is never shared with a file that somebody may change.
    shared = link if path == store.derived(sha256) else "copy"
    digest = _take(path, target, shared)
    if shared == "copy":
        target.chmod(0o644)
    if digest != sha256:
        target.unlink()
        raise IntegrityError(
            f"{path} is damaged: its bytes are not those of its name.",
            hint="remerge store verify says what it belongs to; remerge store rebuild NAME makes "
            "derived bytes again.",
        )


def lend(store: Store, sha256: str, target: Path) -> None:
    """Let the bytes of a digest be read at ``target``, in the staging, by us alone.

    Raises `FileNotFoundError` where they are not there; what they are is for the reader to check.
    """
    path = find(store, sha256)
    if path is None:
        raise FileNotFoundError(sha256)
    try:
        target.hardlink_to(path)
    except OSError:
        _take(path, target, "copy")


def _missing(source: Path) -> IntegrityError:
    return IntegrityError(f"{source} is missing, though the manifest names it.")


def _other(source: Path) -> IntegrityError:
    return IntegrityError(
        f"{source} is not the file that its manifest names.",
        why="It was changed or damaged after it was made.",
        hint="Derive it again: remerge reproduce OUT -o OUT --overwrite.",
    )


def _take(source: Path, target: Path, link: Link) -> str:
    """Share or copy a file, and read the digest of what arrived."""
    if link == "hard":
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            return _take(source, target, "copy")
        target.chmod(0o444)
        return file_digest(target)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        if _reflink(reader.fileno(), writer.fileno()):
            return _finished(writer.fileno(), file_digest(target))
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        return _finished(writer.fileno(), digest.hexdigest())


def _finished(descriptor: int, digest: str) -> str:
    os.fsync(descriptor)
    os.fchmod(descriptor, 0o444)
    return digest


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _sweep(store: Store) -> None:
    """Remove what killed processes were staging; the store is ours alone."""
    for place in store.staging.iterdir() if store.staging.is_dir() else ():
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    if store.staging.is_dir():
        sync_directory(store.staging)
