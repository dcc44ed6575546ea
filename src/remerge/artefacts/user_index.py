"""What this user's machine knows of inputs: digests of files already read, and where they lie.

Manifests hold no paths, so that they can be passed on; the paths stay here. Both files are a
convenience: losing or not being able to write them changes no result.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from remerge.sources.documents import digest_of
from remerge.sources.user_directories import cache_directory, data_directory

_LIMIT = 10_000
# Places of one input.
_MOST = 4


def known_digest(path: Path) -> str | None:
    """SHA-256 of a file that was read before and has not changed since, by its status."""
    found = _read(cache_directory(), "digests.json").get(_key(path))
    return found if isinstance(found, str) else None


def remember_digests(digests: Mapping[Path, str]) -> None:
    """Keep digests for `known_digest`."""
    with suppress(OSError):
        known = {_key(path): _always(digest) for path, digest in digests.items()}
        _update(cache_directory(), "digests.json", known)


def remember_location(files: Mapping[str, str], path: Path) -> None:
    """Keep where an input with these files (name -> SHA-256) lies, and where it lay before: one of
    two copies may go."""
    here, key = str(path.resolve()), digest_of(dict(files))

    def add(known: Any) -> list[str]:
        return [here, *(place for place in _places(known) if place != here)][:_MOST]

    with suppress(OSError):
        _update(data_directory(), "locations.json", {key: add})


def location(files: Mapping[str, str]) -> Path | None:
    """Where an input with these files was last seen, among the places that are still there."""
    known = _read(data_directory(), "locations.json").get(digest_of(dict(files)))
    places = [Path(place) for place in _places(known)]
    return next((place for place in places if place.is_dir()), places[0] if places else None)


def _places(known: Any) -> list[str]:
    """Earlier versions kept one."""
    found = cast("list[Any]", known) if isinstance(known, list) else [known]
    return [place for place in found if isinstance(place, str)]


def _always(value: str) -> Callable[[Any], Any]:
    return lambda known: value


def _key(path: Path) -> str:
    real = path.resolve()
    status = real.stat()
    return f"{real}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def _read(directory: Path | None, name: str) -> dict[str, Any]:
    if directory is None:
        return {}
    try:
        document = json.loads((directory / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def _update(directory: Path | None, name: str, entries: Mapping[str, Callable[[Any], Any]]) -> None:
    """Put an entry in the place of what is known, of which it is made."""
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / f"{name}.lock"):
        document = _read(directory, name)
        for key, entry in entries.items():
            document[key] = entry(document.pop(key, None))
        # The oldest entries go first: insertion order is age.
        document = dict(list(document.items())[-_LIMIT:])
        temporary = directory / f"{name}.{os.getpid()}~"
        temporary.write_text(json.dumps(document))
        temporary.rename(directory / name)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Alone among processes: two merges that end together must not forget one another's entries."""
    with path.open("a") as stream:
        # Some network mounts have no locks; there one goes on without.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
