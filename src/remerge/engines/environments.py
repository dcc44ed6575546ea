"""Engines' environments under the user's cache directory: where they are, when one counts, which
interpreter runs an engine.

An environment counts when its receipt is there, which is written last: a killed installation is
none. It is made again when the engine's definition changed, or what lies below it.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import site
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from remerge.engines.engine import Engine
from remerge.errors import Locked, UsageError
from remerge.sources.storage import cannot_write
from remerge.sources.user_directories import cache_directory

RECEIPT = "remerge-engine.json"


def place_of(engine: Engine) -> Path:
    """The directory of an engine's environment, whether it is there or not.

    Raises `UsageError` for a user without a home.
    """
    cache = cache_directory()
    if cache is None:
        raise UsageError(
            "There is no place for engines: this user has no home directory.",
            hint="Set XDG_CACHE_HOME.",
        )
    return cache / "engines" / engine.folder


def is_installed(engine: Engine) -> bool:
    """Whether the environment is there, complete and up to date."""
    place = place_of(engine)
    found = _read_receipt(place)
    if found is None or not interpreter(place).exists():
        return False
    # How large it became decides nothing.
    return {name: value for name, value in found.items() if name != "bytes"} == receipt(engine)


def state_of(engine: Engine) -> str:
    """``installed``, ``out of date`` (made for another remerge), ``unfinished`` (a killed
    installation) or ``not installed``."""
    if is_installed(engine):
        return "installed"
    place = place_of(engine)
    if not os.path.lexists(place):
        return "not installed"
    return "unfinished" if _read_receipt(place) is None else "out of date"


def python_of(engine: Engine, given: Mapping[str, str]) -> Path:
    """The interpreter that runs an engine: the one ``given`` (``--engine-python``), or its own.

    Raises `UsageError` where there is none, naming the command that makes it.
    """
    if engine.name in given:
        path = Path(given[engine.name]).absolute()
        if not path.is_file() or not os.access(path, os.X_OK):
            raise UsageError(f"--engine-python {engine.name}={path}: {path} is no program.")
        return path
    state = state_of(engine)
    if state != "installed":
        raise UsageError(
            f"The engine {engine.name} is {state}.",
            hint=f"Run: remerge engines install {engine.name}",
        )
    return interpreter(place_of(engine))


def remove(engine: Engine) -> bool:
    """Delete the environment, or the link that stands for it; whether there was one.

    Raises `Locked` while it is being made.
    """
    if not os.path.lexists(place_of(engine)):
        return False
    with alone(engine):
        return delete(engine)


def delete(engine: Engine) -> bool:
    """`remove`, for whoever has it alone."""
    place = place_of(engine)
    found = os.path.lexists(place)
    if place.is_symlink() or place.is_file():
        # What lies behind a link is somebody's own.
        place.unlink()
        return found
    (place / RECEIPT).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    return found


@contextmanager
def alone(engine: Engine) -> Generator[int]:
    """Alone among processes with an engine's environment: the descriptor of the lock.

    A child that inherits it holds the lock as well. Raises `Locked`.
    """
    place = place_of(engine)
    lock = place.with_name(f".{place.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(
                f"Another remerge is installing or removing the engine {engine.name}.",
                hint="Wait for it to end, and run the same command again.",
            ) from error
        except OSError:
            pass  # Some network mounts have no locks; there one goes on without.
        yield fd
    finally:
        os.close(fd)


def interpreter(place: Path) -> Path:
    """The program that runs what is installed in an environment."""
    return place / "bin" / "python"


def packages_folder(place: Path) -> Path | None:
    """Where an environment's packages lie; None where it has none."""
    return next(iter(sorted((place / "lib").glob("python3.*/site-packages"))), None)


def versions_in(engine: Engine) -> dict[str, str]:
    """The versions of an installed engine's main packages, as their metadata say."""
    folder = packages_folder(place_of(engine))
    paths = [] if folder is None else [str(folder)]
    found = importlib.metadata.distributions(path=paths)
    known = {_normal(distribution.name): distribution.version for distribution in found}
    return {name: known[_normal(name)] for name in engine.packages if _normal(name) in known}


def size_of(engine: Engine) -> int:
    """Bytes that an environment takes on disk: as its receipt says, else counted."""
    told = (_read_receipt(place_of(engine)) or {}).get("bytes")
    return told if isinstance(told, int) else count_bytes(engine)


def count_bytes(engine: Engine) -> int:
    """Bytes of an environment's files, links not followed."""
    return sum(
        entry.stat(follow_symlinks=False).st_blocks * 512
        for folder, _, _ in os.walk(place_of(engine))
        for entry in os.scandir(folder)
        if not entry.is_dir(follow_symlinks=False)
    )


def receipt(engine: Engine) -> dict[str, object]:
    """What an environment made now would say of itself."""
    found: dict[str, object] = {"engine": engine.name, "definition": engine.identity}
    if engine.lies_over:
        return {**found, "below": below()}
    # A system that replaces its Python by another minor version leaves the packages behind.
    return {**found, "interpreter": os.path.realpath(interpreter(place_of(engine)))}


def below() -> list[str]:
    """Where remerge's own packages lie."""
    return [path for path in dict.fromkeys(site.getsitepackages()) if Path(path).is_dir()]


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _read_receipt(place: Path) -> dict[str, object] | None:
    try:
        found = json.loads((place / RECEIPT).read_bytes())
    except (OSError, ValueError):
        return None
    return cast("dict[str, object]", found) if isinstance(found, dict) else None
