"""From a file, a directory, a digest or a name back to what made it, with or without a store."""

from __future__ import annotations

import os
import re
from pathlib import Path

from remerge.artefacts import tracing
from remerge.artefacts.found_files import Report
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.library import StoreLibrary
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.transactions import settle
from remerge.artefacts.traced import Trace
from remerge.errors import BadInput

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def trace(what: str | Path, store: Store | None, report: Report) -> Trace:
    """What is known of ``what``: a path that is there, else a digest or a name in the store.

    Raises `BadInput` where nothing is known, saying what was tried.
    """
    if store is not None:
        settle(store)
    library = None if store is None else StoreLibrary(store)
    path, text = Path(what).expanduser(), str(what)
    if isinstance(what, Path) or _is_there(path):
        return tracing.trace(path, library, report=report)
    if library is None:
        raise BadInput(
            f"There is nothing at {text}, and no store that could know it by this name.",
            hint="Give a path that is there, or a store: --store DIR.",
        )
    digest = _DIGEST.fullmatch(text)
    try:
        artefact = resolve(library.store, text)
    except BadInput:
        if digest is None:
            raise
        return tracing.trace_digest(digest[1], library)
    return tracing.trace_kept(text, library.get(artefact), library)


def _is_there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
