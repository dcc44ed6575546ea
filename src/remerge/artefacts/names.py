"""Names of artefacts: what may be one, and what an artefact is called unless its user says.

``merged-<base>-<version>-adapter-<name>-<version>``: a version is the Hub's commit, else the digest
of the files, eight digits of either.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from remerge.errors import UsageError

_LONGEST = 200
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{6,64}")


def check_name(name: str) -> str:
    """``name`` where it may be one; raises `UsageError` where it may not."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{name!r} is no name.",
            why="A name has letters, digits, '.', '_' and '-', begins and ends with a letter or "
            f"digit, has no '..' and at most {_LONGEST} characters.",
        )
    if _DIGEST.fullmatch(name):
        raise UsageError(f"{name!r} could be a digest.", hint="Choose a name that cannot.")
    return name


def name_of_input(kind: str, name: str, version: str) -> str:
    """What an adapter or a base is called: ``adapter-<name>-<version>``."""
    return _shortened(f"{kind}-{_plain(name)}-{version}")


def name_of_merge(
    base: tuple[str, str], adapters: Sequence[tuple[str, str]], form: str | None
) -> str:
    """What a merge is called, of the names and versions of its base and adapters; one in another
    ``form`` than a plain checkpoint has that at the end."""
    parts = ["merged", _plain(base[0]), base[1]]
    if adapters:
        parts.append("adapter")
    for name, version in adapters:
        parts += [_plain(name), version]
    if form is not None:
        parts.append(_plain(form))
    return _shortened("-".join(parts))


def _shortened(name: str) -> str:
    """A name of legal length: the rest of a long one is told by its digest."""
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9].rstrip('._-')}-{digest}"


def _plain(name: str) -> str:
    """What others called it, in our alphabet: of a Hub id the last part."""
    last = name.rstrip("/").rpartition("/")[2]
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", last)).strip("._-")
    return plain or "unnamed"
