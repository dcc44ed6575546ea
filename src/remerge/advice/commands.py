"""The commands that follow from an answer, complete, in the words of the command line."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence

from remerge.advice.facts import Facts
from remerge.advice.looked import Named
from remerge.advice.rules import Decision
from remerge.sources.references import labels_of

# What the command line has had since there is advice; what else it has is told.
ALWAYS = frozenset({"merge", "compare", "inspect", "store"})


def commands_of(
    decision: Decision,
    facts: Facts,
    base: Named | None,
    adapters: Sequence[Named],
    known: Collection[str],
) -> tuple[str, ...]:
    """What to run, the first thing first; BASE and ADAPTER stand for what was not given.

    Only commands that are ``known`` are named.
    """
    lines = _merging if decision != "keep" else _keeping
    found = lines(decision, facts, base, adapters)
    return tuple(shlex.join(words) for words in found if words[1] in known)


def measure_of(base: Named | None, adapters: Sequence[Named], known: Collection[str]) -> str | None:
    """The command that measures merged against unmerged, where there is one."""
    if "bench" not in known:
        return None
    return shlex.join(["remerge", "bench", _base(base), _adapters(adapters)[0]])


def _merging(
    decision: Decision, facts: Facts, base: Named | None, adapters: Sequence[Named]
) -> Iterator[list[str]]:
    named, given = _base(base), _adapters(adapters)
    form = [] if facts.quantize in (None, "none") else ["--to", str(facts.quantize)]
    # The first of several is merged where not all are.
    groups = [given] if facts.variants == 1 else [[one] for one in given]
    if decision == "both":
        groups = groups[:1]
    labels = [""] if len(groups) == 1 else [f"-{label}" for label in labels_of(given)]
    suffix = ".gguf" if str(facts.quantize).startswith("gguf:") else ""
    outputs = [f"merged{label.replace('#', '-')}{suffix}" for label in labels]
    for group, output in zip(groups, outputs, strict=True):
        yield ["remerge", "merge", named, *group, "-o", output, *form]
    yield ["remerge", "compare", named, *groups[0], outputs[0]]
    for output in outputs:
        # It takes the adapters along, which are never deleted.
        yield ["remerge", "store", "add", output]
    yield ["remerge", "serve", outputs[0]]


def _keeping(
    decision: Decision, facts: Facts, base: Named | None, adapters: Sequence[Named]
) -> Iterator[list[str]]:
    named, given = _base(base), _adapters(adapters)
    for adapter in given:
        yield ["remerge", "store", "add", adapter]
    yield ["remerge", "serve", f"{named}+{given[0]}"]
    yield ["remerge", "bench", named, given[0]]


def _base(base: Named | None) -> str:
    return "BASE" if base is None else str(base)


def _adapters(adapters: Sequence[Named]) -> list[str]:
    return [str(adapter) for adapter in adapters] or ["ADAPTER"]
