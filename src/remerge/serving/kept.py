"""Where what was made to be served is kept: in the user's cache directory, to be deleted at any
time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from remerge.errors import UsageError
from remerge.sources.storage import cannot_write
from remerge.sources.user_directories import cache_directory


def place_for(kind: str, *words: str) -> Path:
    """A directory of the user's cache for what was made to be served; made if it is not there.

    Raises `UsageError` for a user without a home.
    """
    cache = cache_directory()
    if cache is None:
        raise UsageError(
            "There is no place for what is to be served: this user has no home directory.",
            hint="Set XDG_CACHE_HOME.",
        )
    key = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    place = cache / "served" / kind / key
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(place, error) from error
    return place
