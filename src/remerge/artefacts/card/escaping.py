"""Names and sentences of others inside of Markdown: they stay text, whatever signs they have.

A special sign is written as its HTML entity, which Markdown shows and never takes for structure.
"""

from __future__ import annotations

import re

# A hostile name may be as long as a header.
_LONGEST = 500
_PLAIN = re.compile(r"[A-Za-z0-9_./:@=+, -]+")
_IN_TEXT = frozenset(" .,;:'()/%+-=\"?")


def clean(text: str, longest: int = _LONGEST) -> str:
    """One line without control characters, of bounded length and valid UTF-8."""
    valid = text.encode("utf-8", "backslashreplace").decode()
    line = " ".join("".join(c if c.isprintable() else " " for c in valid).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def prose(text: str, longest: int = _LONGEST) -> str:
    """Text inside of a sentence or of a table's cell."""
    return "".join(_entity(c) for c in clean(text, longest))


def code(text: str) -> str:
    """A name set as code, also inside of a table."""
    line = clean(text)
    if _PLAIN.fullmatch(line):
        return f"`{line}`"
    return f"<code>{''.join(_entity(c) for c in line)}</code>"


def block(text: str, language: str) -> list[str]:
    """Lines of a block of code; what could end a fence is set as HTML."""
    if not any(sign in text for sign in ("```", "<!--", "-->")):
        lines = text.split("\n")
        if all(line.isprintable() for line in lines):
            return [f"```{language}", *lines, "```"]
    escaped = "".join(_entity(c) for c in text.encode("utf-8", "backslashreplace").decode())
    return [f"<pre><code>{escaped}</code></pre>"]


def _entity(sign: str) -> str:
    return sign if sign.isalnum() or sign in _IN_TEXT else f"&#{ord(sign)};"
