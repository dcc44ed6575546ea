"""What a page has its reader do, in order.

A block whose commands follow ``$ `` is a transcript: each command is run, and what is shown below
it is what it prints. A line in brackets stands for lines that are left out. On a page that has
transcripts, blocks of Python are run too, and a block that begins with ``# NAME.yaml`` is a file of
that name. All else are forms or data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# ([\w-]+\.ya?ml)\b")
_NEEDS = re.compile(r"<!-- engines: ([\w., -]+) -->")


@dataclass(frozen=True)
class Step:
    """One command, program or file of a page, from its line ``line`` on."""

    line: int
    text: str
    shown: tuple[str, ...] = ()
    kind: str = "command"
    """``command``, ``python``, or the name of a file whose text this is."""


def engines_of(page: Path) -> tuple[str, ...]:
    """The engines that a page says it needs, in a comment that no reader sees."""
    found = _NEEDS.search(page.read_text())
    return tuple(re.split(r",\s*", found[1])) if found else ()


def steps_of(page: Path) -> list[Step]:
    text = page.read_text()
    blocks = [(found, *found.groups()) for found in _FENCE.finditer(text)]
    if not any(body.startswith("$ ") for _, _, body in blocks):
        return []
    steps: list[Step] = []
    for found, language, body in blocks:
        line = text.count("\n", 0, found.start()) + 2
        name = _FILE.match(body)
        if language == "python":
            steps.append(Step(line, body, kind="python"))
        elif name:
            steps.append(Step(line, body, kind=name[1]))
        elif body.startswith("$ "):
            steps += _transcript(body, line)
    return steps


def unrun_of(page: Path) -> list[str]:
    """The blocks that are no steps: forms, data, pictures."""
    blocks = _FENCE.findall(page.read_text())
    return [body for language, body in blocks if not _runs(language, body)]


def _runs(language: str, body: str) -> bool:
    return language == "python" or body.startswith("$ ") or _FILE.match(body) is not None


def _transcript(body: str, first: int) -> list[Step]:
    steps: list[Step] = []
    lines = body.splitlines()
    at = 0
    while at < len(lines):
        start = at
        command = [lines[at].removeprefix("$ ")]
        ending = _ending_of_document(command[0])
        while at + 1 < len(lines) and (
            command[-1].endswith("\\") or (ending is not None and command[-1] != ending)
        ):
            at += 1
            command.append(lines[at].removeprefix("> "))
        at += 1
        shown: list[str] = []
        while at < len(lines) and not lines[at].startswith("$ "):
            shown.append(lines[at])
            at += 1
        steps.append(Step(first + start, "\n".join(command), tuple(shown)))
    return steps


def _ending_of_document(command: str) -> str | None:
    """What ends the lines that a command is given with it (``<<'END'``)."""
    found = re.search(r"<<-?\s*'?(\w+)'?", command)
    return found[1] if found else None
