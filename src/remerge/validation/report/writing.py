"""Putting the report where it is asked for: whole, and over nothing but a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remerge.errors import UsageError
from remerge.outputs.directory import write_durably
from remerge.validation.report.facts import gather
from remerge.validation.report.rendering import GENERATOR, render

_HEAD = 4096


@dataclass(frozen=True)
class Written:
    """A report: where it lies, its bytes, and what the newest comparison says."""

    path: Path
    nbytes: int
    verdict: Literal["passed", "failed"] | None


def write_report(
    output: Path, path: Path | None, formats: Sequence[Path], *, overwrite: bool
) -> Written:
    """Gather, render and write; by default to ``OUT-report.html`` beside ``output``.

    Raises `UsageError` for a place that must not be written to, before any work.
    """
    whole = output.resolve()
    place = whole.with_name(f"{whole.name}-report.html") if path is None else path
    _check(place, whole, overwrite=overwrite)
    facts = gather(output, formats)
    content = render(facts).encode()
    write_durably(place, content)
    newest = facts.newest
    if newest is None:
        return Written(place, len(content), None)
    return Written(place, len(content), "passed" if newest.passed else "failed")


def _check(place: Path, output: Path, *, overwrite: bool) -> None:
    if place.is_dir():
        raise UsageError(f"{place} is a directory.", hint="Name a file with -o.")
    if not place.parent.is_dir():
        raise UsageError(f"{place.parent} is no directory.", hint="Choose another -o.")
    if output.is_dir() and output in place.resolve().parents:
        raise UsageError(
            f"{place} would lie inside of {output.name}, which its manifest describes whole.",
            hint="Choose another -o.",
        )
    if place.exists() and (place.resolve() == output or not overwrite) and not is_report(place):
        raise UsageError(
            f"{place} exists and is no report.",
            why="It may hold somebody's work.",
            hint="Choose another -o, or add --overwrite to replace it.",
        )


def is_report(path: Path) -> bool:
    """Whether a file is a page that `remerge report` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return f'<meta name="generator" content="{GENERATOR}'.encode() in stream.read(_HEAD)
