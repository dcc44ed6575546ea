"""Where an output directory grows, so that others see the old state or the complete one.

Work goes to a hidden sibling, or for an existing empty directory (it may be a mount point) to a
hidden folder inside it. It is renamed last; what must be replaced is exchanged atomically. A killed
run leaves its work behind, and the same command takes it up again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import Locked, TryAgain, UsageError
from remerge.sources.storage import cannot_write, sync_directory

MANIFEST = "remerge.json"
PROVENANCE = "provenance.json"
# Changes as scores come, and so is none of the outputs.
CARD = "README.md"
# What a directory has that is a store (`remerge.artefacts.store`).
STORE = "store.json"
_INSIDE = ".remerge-partial"
_STATE = ".state.json"
_LOCK = ".lock"
_FILLING = ".filling.json"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True)
class Workplace:
    """The folder where an output is made: ``work`` becomes ``out``, or fills it when ``inside``."""

    out: Path
    work: Path
    inside: bool

    def receipt(self, name: str) -> dict[str, Any] | None:
        """What a finished file of an earlier, killed run left; None without one."""
        return _read_json(self.work / f".{name}.receipt")

    def write_receipt(self, name: str, receipt: dict[str, Any]) -> None:
        """Record that a file is finished and durable."""
        write_durably(self.work / f".{name}.receipt", json.dumps(receipt).encode())


def check_place(out: Path, inputs: list[Path], *, is_file: bool = False) -> None:
    """Refuse an output that is an input, lies in one or holds one, or has no place to be."""
    resolved = out.resolve()
    for path in inputs:
        source = path.resolve()
        if resolved == source or source in resolved.parents or resolved in source.parents:
            raise UsageError(
                f"The output {out} and the input {path} overlap.",
                why="Inputs are never touched.",
                hint="Choose another place with -o.",
            )
    if not is_file and out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is not a directory.", hint="Choose another -o.")
    if not resolved.parent.is_dir():
        raise UsageError(
            f"Cannot create {out}: the directory {out.parent} does not exist.",
            hint=f"Create it first: mkdir -p {out.parent}.",
        )


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what was not asked to be replaced, or cannot be."""
    if not out.is_dir() or (out / _INSIDE).exists() or not _others(out):
        return
    if os.path.ismount(out):
        raise UsageError(
            f"{out} is a mount point and not empty.",
            why="It cannot be exchanged for another directory.",
            hint="Empty it, or choose a directory below it.",
        )
    if not overwrite:
        raise UsageError(
            f"{out} exists and is not empty.",
            why="It may hold somebody's work.",
            hint="Choose another -o, or add --overwrite to replace it.",
        )
    store = _store_in_the_way(out.resolve())
    if store is not None:
        raise UsageError(
            f"Replacing {out} would delete what the store {store} keeps.",
            why="Its adapters may be nowhere else.",
            hint="Choose another -o, or move the store away.",
        )


def _store_in_the_way(out: Path) -> Path | None:
    """A store that is this directory, or lies in it, or around it."""
    markers = (*(folder / STORE for folder in (out, *out.parents)), *out.rglob(STORE))
    return next(
        (one.parent for one in markers if (one.parent / "refs").is_dir() and one.is_file()), None
    )


def check_space(out: Path, needed: int) -> None:
    """Refuse, before the first write, what will not fit beside the work of a killed run."""
    out = out.resolve()
    for work in (out / _INSIDE, sibling(out)):
        needed -= sum(p.stat().st_blocks * 512 for p in work.rglob("*") if p.is_file())
    place = out if out.is_dir() else out.parent
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise TryAgain(
            f"{out} needs {needed:,} bytes, but its file system has {free:,} free.",
            hint="Free some space, or choose another place with -o.",
        )


@contextmanager
def workplace(out: Path, state: dict[str, Any]) -> Generator[Workplace]:
    """Open the work of this output, alone.

    Work of an earlier run with the same ``state`` is kept, any other is dropped. Any failure but a
    kill removes the work. Raises `Locked` while another process works on the same output.
    """
    out = out.resolve()
    _finish_replacing(out)
    inside = out.is_dir() and (not _others(out) or (out / _INSIDE).is_dir())
    place = Workplace(out, out / _INSIDE if inside else sibling(out), inside)
    with _locked(place.work):
        try:
            _take_back(place)
            if _read_json(place.work / _STATE) != state:
                _clear(place.work)
                write_durably(place.work / _STATE, json.dumps(state).encode())
            yield place
        except BaseException:
            _take_back(place)
            shutil.rmtree(place.work, ignore_errors=True)
            raise


def publish(place: Workplace) -> None:
    """Make the work the output: all of it, or (killed at any moment) none that looks complete."""
    # Hidden names are receipts and half-written files: no output has one.
    for leftover in place.work.glob(".*"):
        if leftover.name not in (_LOCK, _STATE):
            leftover.unlink()
    if place.inside:
        _fill(place)
        return
    for leftover in (_STATE, _LOCK):
        (place.work / leftover).unlink(missing_ok=True)
    sync_directory(place.work)
    if not place.out.is_dir():
        place.work.rename(place.out)
    elif not _exchange(place.work, place.out):
        old = _old(place.out)
        place.out.rename(old)
        place.work.rename(place.out)
        shutil.rmtree(old)
    sync_directory(place.out.parent)
    shutil.rmtree(place.work, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what a run left that was killed after its output was complete."""
    out = out.resolve()
    for work in (out / _INSIDE, sibling(out), _old(out)):
        if work.is_dir():
            with suppress(Locked), _locked(work):
                shutil.rmtree(work, ignore_errors=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file whole: a temporary name, fsync, rename."""
    temporary = path.with_name(path.name + "~")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file of any size, a block at a time, and make it durable."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        raise cannot_write(target, error) from error


def sibling(out: Path) -> Path:
    """Where work on an output goes that does not exist, or is to be replaced."""
    return out.parent / f".{out.name}{_INSIDE}"


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.remerge-old"


def _finish_replacing(out: Path) -> None:
    """End a double rename that a kill cut in two: the new state was complete, so it wins."""
    old = _old(out)
    if not old.is_dir():
        return
    if not out.exists():
        work = sibling(out)
        (work if (work / MANIFEST).exists() else old).rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(work: Path) -> Generator[None]:
    try:
        work.mkdir(exist_ok=True)
        fd = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise cannot_write(work, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network mounts have no locks; there one goes on without.
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise Locked(
                    f"Another remerge is writing {work.parent}.",
                    hint="Wait for it to end, or choose another -o.",
                ) from error
        yield
    finally:
        os.close(fd)


def _others(out: Path) -> list[str]:
    """What lies in a directory besides our work and what a new file system comes with."""
    return [p.name for p in out.iterdir() if p.name not in (_INSIDE, "lost+found")]


def _take_back(place: Workplace) -> None:
    """Undo a filling that was cut short: what was moved out returns to the work, nothing else."""
    filling = _read_json(place.work / _FILLING) or {"names": []}
    for name in filling["names"]:
        if os.path.lexists(place.out / name) and not os.path.lexists(place.work / name):
            (place.out / name).rename(place.work / name)
    (place.work / _FILLING).unlink(missing_ok=True)


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _fill(place: Workplace) -> None:
    """Move everything up into the existing directory, the manifest last."""
    names = sorted(p.name for p in place.work.iterdir() if not p.name.startswith("."))
    names.remove(MANIFEST)
    # A run that finds the work again must know which files of the directory are ours.
    filling = json.dumps({"names": [*names, MANIFEST]})
    write_durably(place.work / _FILLING, filling.encode())
    for name in [*names, MANIFEST]:
        (place.work / name).rename(place.out / name)
    sync_directory(place.out)
    shutil.rmtree(place.work, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    result = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
