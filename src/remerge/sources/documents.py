"""JSON: from outside, read whole, bounded in size, and taken for what it is; and its digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from remerge.errors import BadInput

_MAX_JSON = 100_000_000


def read_json_object(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object; raises `BadInput` for anything else.

    With ``unique`` also for a name that is stated twice, of which readers may take either.
    """
    try:
        if not path.is_file():
            raise BadInput(f"{path} is not a regular file.")
        if path.stat().st_size > _MAX_JSON:
            raise BadInput(f"{path} has {path.stat().st_size:,} bytes, too many for a JSON file.")
        pairs = _unique if unique else None
        document: object = json.loads(path.read_bytes(), object_pairs_hook=pairs)
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} is not valid JSON ({error}).",
            why="The file is damaged, or a git-lfs pointer stands in its place.",
        ) from error
    if not isinstance(document, dict):
        raise BadInput(f"{path} holds a JSON {type(document).__name__}, not an object.")
    return cast("dict[str, Any]", document)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it states {name!r} twice")
        found[name] = value
    return found


def parse_json(text: str) -> object:
    """JSON of text; raises ValueError for what is none, or states a name twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def digest_of(document: Any) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def as_object(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object, else None."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[Any] | None:
    """The value if it is a JSON array, else None."""
    return cast("list[Any]", value) if isinstance(value, list) else None
