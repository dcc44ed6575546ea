"""What a name has named, told from the log alone: where a rollback leads, and what it may need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_POINTS = ("add", "tag", "move", "promote", "rollback")


@dataclass(frozen=True)
class Stay:
    """An artefact that a name named, since when, and by which action (``add``, ``tag``, ``move``,
    ``promote``, ``rollback``)."""

    artefact: str
    since: str
    action: str


@dataclass(frozen=True)
class History:
    """``now`` is what the name names, ``before`` what a rollback leads to, the nearest first;
    ``all`` is every stay there was, the oldest first."""

    now: Stay | None
    before: tuple[Stay, ...]
    all: tuple[Stay, ...]


def history_of(name: str, log: Sequence[Mapping[str, Any]]) -> History:
    """Replay the log (`remerge.artefacts.store.transactions.read_log`) for one name.

    A rollback takes away what it leads back from, so that the next one goes further back; one to
    what is not before it any more counts as a step forward.
    """
    now: Stay | None = None
    before: list[Stay] = []
    every: list[Stay] = []
    for entry in log:
        if name not in entry["names"]:
            continue
        if entry["action"] == "rm":
            before += [now] if now is not None else []
            now = None
            continue
        artefact = _pointed_to(name, entry)
        if artefact is None or (now is not None and now.artefact == artefact):
            continue
        was = entry.get("was")
        if was and now is None:
            # What came with a merge got its name in a line about the merge.
            now = Stay(was, entry["time"], "add")
            every.append(now)
        stay = Stay(artefact, entry["time"], entry["action"])
        back = entry.get("back", 0) if entry["action"] == "rollback" else 0
        if back:
            del before[max(0, len(before) - back) :]
        elif now is not None:
            before.append(now)
        elif before and before[-1].artefact == artefact:
            # Taken away and given again.
            before.pop()
        now = stay
        every.append(stay)
    return History(now, tuple(reversed(before)), tuple(every))


def promoted(log: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """The artefacts that a rollback may need, each with a name that was promoted to it or away from
    it; ``names`` are those that are there."""
    found: dict[str, str] = {}
    ever = {
        name
        for entry in log
        if entry["action"] in ("promote", "rollback")
        for name in entry["names"]
    }
    for name in sorted(ever & set(names)):
        for stay in history_of(name, log).all:
            found.setdefault(stay.artefact, name)
    return found


def _pointed_to(name: str, entry: Mapping[str, Any]) -> str | None:
    """The artefact that a line gives a name to; None where it only tells of it."""
    if entry["action"] not in _POINTS:
        return None
    if entry["name"] == name:
        return entry["artefact"]
    # Adding a merge also names the adapters that come with it, of which the line says no more.
    return None
