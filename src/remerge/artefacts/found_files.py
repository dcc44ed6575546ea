"""Files found anywhere: which are weights, their digests as they are now, manifests near them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from remerge.artefacts.manifest import MANIFEST
from remerge.artefacts.manifest_facts import Told, read_told
from remerge.errors import BadInput, TryAgain

# Bytes done, bytes in all, the file at hand.
Report = Callable[[int, int, str], None]

_WEIGHTS = re.compile(
    r".*\.(safetensors|gguf|onnx|onnx_data|data|bin|pt|pth|ckpt|h5|msgpack|tflite|npz|ot|mlmodel)"
)
# What trainers leave beside weights.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")
_MOST_FILES = 10_000
_MOST_MANIFESTS = 200
_MAX_MANIFEST = 2**28
_BLOCK = 2**22
_LEVELS = 2


def unheard(done: int, total: int, file: str) -> None:
    pass


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights."""
    last = name.rpartition("/")[2]
    return _WEIGHTS.fullmatch(last) is not None and _NO_WEIGHTS.fullmatch(last) is None


def weights_below(directory: Path) -> list[str]:
    """The files of weights in a directory and below it, by their names from there; hidden ones
    apart. Raises `BadInput` for a directory of more files than a model has."""
    found: list[str] = []
    count = 0
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        count += len(files)
        if count > _MOST_FILES:
            raise BadInput(
                f"{directory} holds more than {_MOST_FILES:,} files: it is no model.",
                hint="Give the directory of one model.",
            )
        place = Path(folder)
        found += [
            (place / name).relative_to(directory).as_posix()
            for name in files
            if not name.startswith(".") and is_weights(name) and (place / name).is_file()
        ]
    return sorted(found)


def digests_now(paths: Sequence[Path], report: Report = unheard) -> dict[Path, str]:
    """SHA-256 of files as they are now, remembered ones not asked, several side by side.

    Raises `BadInput` for one that is no regular file, `TryAgain` where the device fails.
    """
    total = sum(path.stat().st_size for path in paths)
    done, lock = 0, Lock()

    def add(count: int, name: str) -> None:
        nonlocal done
        with lock:
            done += count
            report(done, total, name)

    def read(path: Path) -> str:
        return _digest(path, add)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(read, paths), strict=True))


def manifest_at(path: Path) -> Told | None:
    """The manifest at a path; None where there is none that can be read as one."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_MANIFEST:
            return None
        return read_told(path.read_bytes(), str(path))
    except (BadInput, OSError):
        return None


def manifests_near(file: Path) -> Generator[tuple[Told, Path, str]]:
    """Manifests that may be about a file, with their paths and what they would call it: its own,
    its directory's and those above it, then those of other single files in the same directory. Of a
    link also those near what it leads to."""
    seen: set[Path] = set()
    for place in dict.fromkeys((file.absolute(), file.resolve())):
        candidates = [(place.with_name(f"{place.name}.{MANIFEST}"), place.name)]
        folder = place.parent
        for _ in range(_LEVELS + 1):
            candidates.append((folder / MANIFEST, place.relative_to(folder).as_posix()))
            folder = folder.parent
        beside = sorted(place.parent.glob(f"*.{MANIFEST}"))[:_MOST_MANIFESTS]
        candidates += [(path, place.name) for path in beside]
        for path, name in candidates:
            if path in seen:
                continue
            seen.add(path)
            told = manifest_at(path)
            if told is not None:
                yield told, path, name


def _digest(path: Path, add: Callable[[int, str], None]) -> str:
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"Cannot open {path}: {error.strerror}.") from error
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{path} is not a regular file.")
            while block := stream.read(_BLOCK):
                digest.update(block)
                add(len(block), path.name)
    except OSError as error:
        raise TryAgain(f"Reading {path} failed: {error.strerror}.") from error
    return digest.hexdigest()
