"""Where this user's caches and data lie, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path | None:
    """For what can be made again; None for a user without a home (a container's number)."""
    return _directory("XDG_CACHE_HOME", ".cache")


def data_directory() -> Path | None:
    """For what cannot; None for a user without a home."""
    return _directory("XDG_DATA_HOME", ".local/share")


def _directory(variable: str, default: str) -> Path | None:
    try:
        return Path(os.environ.get(variable) or Path.home() / default) / "remerge"
    except RuntimeError:
        return None
