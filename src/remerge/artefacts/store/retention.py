"""Which derived artefacts a collection leaves alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remerge.artefacts.store.index import Row
from remerge.errors import UsageError

_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "m": 30 * 24, "y": 365 * 24}


@dataclass(frozen=True)
class Retention:
    """``last`` so many of each line (same base, adapters and form, by their names), those added
    ``within`` this time, those with a name that matches one of ``tags``."""

    last: int = 0
    within: timedelta | None = None
    tags: tuple[str, ...] = ()


def read_retention(last: int | None, within: str | None, tags: Sequence[str]) -> Retention:
    """A retention from what people write: ``--keep-within 30d`` counts hours, days, weeks, months
    of 30 days or years of 365. Raises `UsageError`."""
    if last is not None and last < 0:
        raise UsageError(f"--keep-last {last} is no number of artefacts.")
    return Retention(last or 0, None if within is None else _time(within), tuple(tags))


def reasons(rows: Sequence[Row], retention: Retention) -> dict[str, str]:
    """Why artefacts are kept, by id; what is not here may be collected. ``rows`` oldest first."""
    kept: dict[str, str] = {}
    lines: dict[tuple[object, ...], int] = {}
    now = datetime.now(UTC)
    for row in reversed(rows):
        line = (row.kind, row.base, row.adapters, row.form)
        lines[line] = lines.get(line, 0) + 1
        tag = next(
            (n for n in row.names if any(fnmatch.fnmatchcase(n, t) for t in retention.tags)), None
        )
        if row.pinned:
            kept[row.id] = "pinned"
        elif tag is not None:
            kept[row.id] = f"named {tag}"
        elif lines[line] <= retention.last:
            kept[row.id] = f"one of the last {retention.last} of its line"
        elif retention.within and now - datetime.fromisoformat(row.added) <= retention.within:
            kept[row.id] = f"added {row.added[:10]}"
    return kept


def _time(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([hdwmy])", text)
    if found is None:
        raise UsageError(f"{text!r} is no time.", hint="Write 12h, 30d, 4w, 6m or 1y.")
    return timedelta(hours=int(found[1]) * _HOURS[found[2]])
