"""`remerge.advise`: facts and inputs to an answer with reasons, costs, and what would change it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remerge.advice.commands import ALWAYS, commands_of, measure_of
from remerge.advice.costs import Costs, costs_of
from remerge.advice.deciding import Decided, decide, in_force
from remerge.advice.facts import STATED, Facts, read_facts
from remerge.advice.flips import Flip, flips
from remerge.advice.looked import Looked, Named
from remerge.advice.measured import Slower, read_slower
from remerge.advice.rules import rules

_SUMMARY = {
    "merge": "Serve one merged model for each variant.",
    "keep": "Serve the adapters on their base, unmerged.",
    "both": "Serve a merged model, and go on with the adapter beside it: to train, or to compare.",
    "some": "Merge the variant that serves the most requests, and serve the others as adapters.",
    "stuck": "Not everything can be served as things are; the reasons say what is in the way.",
}
_ASSET = (
    "The adapter stays the asset whatever is served: `remerge store add` keeps it, and makes "
    "merged models from it again."
)
_ASSUMED = {
    "variants": "How many variants are served is not known; costs are those of one.",
    "stage": "The stage is not known, and speaks for neither side.",
    "requests_per_second": "Requests a second are not known: taken for too few to matter.",
    "latency_budget_ms": "No latency budget is known: taken for generous.",
    "further_fine_tuning": "Whether further fine-tuning is planned is not known: taken for no.",
    "quantize": "No quantised format was asked for.",
    "disk": "Room on disk is not known: taken for enough.",
    "gpu_memory": "GPU memory is not known: taken for enough.",
}


@dataclass(frozen=True)
class Advice:
    """An answer. ``next`` is the command to run, ``after`` those that follow it; ``possible`` is
    false where not all variants can be served either way."""

    decided: Decided
    facts: Facts
    summary: str
    possible: bool
    assumed: tuple[str, ...]
    costs: Costs
    changes: tuple[Flip, ...]
    next: str
    after: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def decision(self) -> str:
        """``merge``, ``keep`` or ``both``."""
        return self.decided.decision

    @property
    def asset(self) -> str:
        """What holds for every answer."""
        return _ASSET

    def document(self) -> dict[str, Any]:
        """The advice as JSON data."""
        return {
            "decision": self.decision,
            "summary": self.summary,
            "reasons": [asdict(reason) for reason in self.decided.reasons],
            "pulls": {"merge": self.decided.to_merge, "keep": self.decided.to_keep},
            "possible": self.possible,
            "costs": asdict(self.costs),
            "would_change": [asdict(flip) for flip in self.changes],
            "next": self.next,
            "after": list(self.after),
            "asset": self.asset,
            "facts": asdict(self.facts),
            "assumed": list(self.assumed),
            "notes": list(self.notes),
        }


def advise(
    *,
    base: Named | None = None,
    adapters: Named | Sequence[Named] = (),
    bench: Named | None = None,
    commands: Collection[str] = ALWAYS,
    progress: bool = True,
    **facts: Any,
) -> Advice:
    """Merge, keep adapters, or both?

    ``facts`` are those of `remerge.advice.facts.STATED`: ``variants`` (adapters served of one
    base), ``stage`` (iterating, ab-testing, stable), ``requests_per_second``,
    ``latency_budget_ms`` (until the first token), ``further_fine_tuning``, ``quantize`` (a format
    as ``--to`` takes it, or none), ``disk`` and ``gpu_memory`` (bytes, or ``500GB``). What is None
    is unknown and speaks for nothing. Of ``base`` and ``adapters`` headers and configurations are
    read; a base on the Hub is not fetched. ``bench`` is a file that ``remerge bench`` wrote (or its
    directory): what it measured is then told, and no general range. ``commands`` are those that may
    be named.

    Raises `UsageError` for facts that make no sense, `BadInput` for a base or an adapter that
    cannot be read, or do not fit, and for a benchmark that shows nothing.
    """
    measured = None if bench is None else read_slower(Path(bench))
    if measured is not None:
        # It was measured already.
        commands = frozenset(commands) - {"bench"}
    named = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    looked = Looked(read_facts(facts))
    if base or named:
        # It brings torch.
        from remerge.advice.looking import look

        looked = look(base, named, looked.facts, progress=progress)
    return _advice(looked, named, facts, commands, measured)


def _advice(
    looked: Looked,
    adapters: Sequence[Named],
    stated: Mapping[str, Any],
    commands: Collection[str],
    measured: Slower | None,
) -> Advice:
    facts = looked.facts
    decided = decide(facts)
    lines = commands_of(decided.decision, facts, looked.base, adapters, commands)
    assumed = tuple(_ASSUMED[key] for key in STATED if getattr(facts, key) is None)
    if facts.variants is not None and stated.get("variants") is None:
        assumed = (f"Variants are taken to be the adapters given: {facts.variants}.", *assumed)
    situation = _situation(decided, facts)
    return Advice(
        decided=decided,
        facts=facts,
        summary=_SUMMARY[situation],
        possible=situation != "stuck",
        assumed=assumed,
        costs=costs_of(looked, measure_of(looked.base, adapters, commands), measured),
        changes=flips(facts),
        next=lines[0],
        after=lines[1:],
        notes=(*looked.notes, *_in_one_engine(facts)),
    )


def _situation(decided: Decided, facts: Facts) -> str:
    several = (facts.variants or 1) > 1
    unservable = "keep" in decided.ruled_out
    if not decided.possible or (several and unservable and "merge" in decided.ruled_out):
        return "stuck"
    return "some" if decided.decision == "both" and several and not unservable else decided.decision


def _in_one_engine(facts: Facts) -> Iterator[str]:
    """What rules nothing out, as one engine can do without."""
    for name in sorted(set(facts.obstacles) - set(in_force(facts))):
        obstacle = rules().obstacles[name]
        yield (
            f"Unmerged it cannot be served by {' and '.join(sorted(obstacle.engines))}: "
            f"{obstacle.says} ({obstacle.source})"
        )
