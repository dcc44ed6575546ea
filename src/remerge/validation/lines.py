"""Files of one thing a line, as people write them: JSON lines, or texts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import BadInput, UsageError
from remerge.sources.documents import as_object, parse_json

_MAX_FILE = 50_000_000


@dataclass(frozen=True)
class Lines:
    """A file's lines that are not blank, with their numbers from 1; its size in bytes and
    digest."""

    path: Path
    size: int
    sha256: str
    lines: tuple[tuple[int, str], ...]

    def where(self, number: int) -> str:
        """A line in the words of messages."""
        return f"{self.path}, line {number}"


def read_lines(path: Path, option: str) -> Lines:
    """Lines of UTF-8 that end in LF or CRLF, the last one in either or nothing; a byte order mark
    is passed over. Only these end a line: JSON may hold all others (U+2028) as they are.

    ``option`` names the file in messages. Raises `UsageError` for a file that cannot be read or is
    too large, `BadInput` for one that is no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}.") from error
    if len(content) > _MAX_FILE:
        raise UsageError(
            f"{option} {path} has more than {_MAX_FILE:,} bytes.",
            hint="Give a part of it, as `head -n 1000` writes one.",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{option} {path} is no UTF-8 text (byte {error.start:,}).") from error
    numbered = enumerate((line.removesuffix("\r") for line in text.split("\n")), 1)
    lines = tuple((number, line) for number, line in numbered if line.strip())
    return Lines(path, len(content), hashlib.sha256(content).hexdigest(), lines)


def object_of(where: str, line: str) -> dict[str, Any]:
    """The JSON object of a line, an empty one for other JSON; raises `BadInput` for what is no
    JSON, states a name twice or holds half a character, which no tokenizer takes."""
    try:
        document = as_object(parse_json(line)) or {}
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where} holds half a character (a surrogate without its other half).",
            hint="Write the character itself, or both of its escapes.",
        ) from error
    except ValueError as error:
        raise BadInput(
            f"{where} is no JSON ({error}).", hint="Write one JSON object a line."
        ) from error
    return document
