"""What would change the answer: the rules asked again with one fact changed at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from remerge.advice.deciding import decide, gigabytes
from remerge.advice.facts import STAGES, Facts
from remerge.advice.rules import Decision, rules


@dataclass(frozen=True)
class Flip:
    """Were ``fact`` as ``to`` says (``value`` is one such value), the answer would be
    ``decision``."""

    fact: str
    to: str
    value: Any
    decision: Decision


def flips(facts: Facts) -> tuple[Flip, ...]:
    """Every other answer, by the fact whose change alone leads there."""
    now = decide(facts).decision
    return tuple(flip for flip in _all(facts) if flip.decision != now)


def _all(facts: Facts) -> Iterator[Flip]:
    counts = _bounds("variants") | {1}
    for room in (facts.disk, facts.gpu_memory):
        if room is not None and facts.copy_bytes:
            counts.add(room // facts.copy_bytes + 1)
    yield from _rising(facts, "variants", sorted(map(int, counts)), _count)
    yield from _words(facts, "stage", {stage: stage for stage in STAGES})
    rates = sorted(_bounds("requests_per_second") | {0})
    yield from _rising(facts, "requests_per_second", rates, _rate)
    yield from _budgets(facts, sorted(_bounds("latency_budget_ms")))
    yield from _words(facts, "further_fine_tuning", {"planned": True, "not planned": False})
    wanted = "fp8" if facts.quantize in (None, "none") else facts.quantize
    yield from _words(facts, "quantize", {"a quantised format": wanted, "none": "none"})
    if facts.copy_bytes and facts.copies_bytes:
        rooms = {0, facts.copy_bytes, facts.copies_bytes}
        yield from _rising(facts, "disk", sorted(rooms), _room)
        rooms |= {facts.base_and_adapter_bytes or facts.copy_bytes}
        yield from _rising(facts, "gpu_memory", sorted(rooms), _room)


def _bounds(fact: str) -> set[float]:
    found: set[float] = set()
    for rule in rules().rules:
        if rule.fact == fact:
            found |= rule.reaches.keys()
            # Beyond what is within, the next value begins.
            found |= {bound + 1 if fact == "variants" else bound for bound in rule.within}
    return found


def _rising(facts: Facts, fact: str, bounds: Sequence[Any], said: Any) -> Iterator[Flip]:
    """Ranges from each bound to the next, joined where the answer is the same."""
    place = 0
    for answer, same in _runs(facts, fact, bounds):
        place += len(same)
        after = bounds[place] if place < len(bounds) else None
        yield Flip(fact, said(same[0], after, same[0] == bounds[0]), same[0], answer)


def _count(first: int, after: int | None, least: bool) -> str:
    if after is None:
        return f"{first} or more"
    if after == first + 1:
        return str(first)
    return f"at most {after - 1}" if least else f"{first} to {after - 1}"


def _rate(first: float, after: float | None, least: bool) -> str:
    if after is None:
        return f"{first:g} or more"
    return f"less than {after:g}" if least else f"{first:g} to {after:g}"


def _room(first: int, after: int | None, least: bool) -> str:
    if after is None:
        return f"{gigabytes(first)} or more"
    return f"less than {gigabytes(after)}" if least else f"{gigabytes(first)} to {gigabytes(after)}"


def _budgets(facts: Facts, bounds: Sequence[float]) -> Iterator[Flip]:
    """Ranges up to each bound, and beyond the last."""
    fact, before = "latency_budget_ms", 0.0
    for answer, same in _runs(facts, fact, [*bounds, 2 * bounds[-1]]):
        last = same[-1]
        until = f"at most {last:g}" if not before else f"{before:g} to {last:g}"
        yield Flip(fact, f"more than {before:g}" if last > bounds[-1] else until, last, answer)
        before = last


def _runs(
    facts: Facts, fact: str, values: Sequence[Any]
) -> Iterator[tuple[Decision, Sequence[Any]]]:
    """Neighbouring values with one answer."""

    def answer(value: Any) -> Decision:
        return _with(facts, fact, value)

    for decision, same in groupby(values, answer):
        yield decision, list(same)


def _words(facts: Facts, fact: str, values: dict[str, Any]) -> Iterator[Flip]:
    current = getattr(facts, fact)
    for word, value in values.items():
        if value != current:
            yield Flip(fact, word, value, _with(facts, fact, value))


def _with(facts: Facts, fact: str, value: Any) -> Decision:
    return decide(replace(facts, **{fact: value})).decision
