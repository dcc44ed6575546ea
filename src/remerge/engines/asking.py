"""Putting questions to models in an engine's environment: the caller's side of
`remerge.engines.scoring`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remerge.engines.calling import Note, Report, call
from remerge.engines.scoring import Answered, Side, Told


def ask(
    python: Path,
    module: str,
    sides: Sequence[Side],
    request: Mapping[str, Any],
    report: Report,
    told: Told = lambda side, number, answered: None,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Ask all sides, one after the other in one process. Each answer is ``told`` as it comes, so
    that what was paid for is not lost when the process ends before its time.

    Gives what the engine says besides (tokens, notes, versions, peak memory); raises what it
    raises.
    """

    def part(document: Mapping[str, Any]) -> None:
        told(document["side"], document["item"], Answered.of(document))

    asked = {"texts": [], **request, "sides": [side.as_request() for side in sides]}
    return call(python, module, asked, report, note=note, part=part)


def collect(found: dict[tuple[str, int], Answered]) -> Told:
    """A listener that keeps what it is told."""

    def told(side: str, number: int, answered: Answered) -> None:
        found[side, number] = answered

    return told
