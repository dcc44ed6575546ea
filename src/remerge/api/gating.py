"""A gate before anything is published: the comparison that decides of an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remerge.api.options import Planned, Source, silent
from remerge.artefacts.making import Judge
from remerge.errors import NotReproduced

if TYPE_CHECKING:
    from remerge.validation.compare import CompareReport

# Told of the comparison that decides whether an output is published.
Judged = Callable[["CompareReport"], None]


def unjudged(report: CompareReport) -> None:
    pass


def judge_of(
    planned: Planned,
    base: Source | None,
    named: Sequence[Source],
    output: Source,
    gate: Mapping[str, Any] | None,
    judged: Judged,
    device: str,
    threads: int | None,
    pythons: Mapping[str, str],
) -> Judge | None:
    """What is to look at an output before it is published; None without a gate."""
    if gate is None:
        return None
    original = planned.inputs.original
    source = planned.inputs.base.path if base is None or original else base

    def judge(place: Path) -> None:
        # It always imports transformers, which takes seconds; most merges can do without.
        from remerge.validation import comparison_asked

        asked = comparison_asked.Asked(
            base=source,
            adapters=named,
            output=place,
            known_as=Path(output).name,
            gate=gate,
            device=device,
            threads=threads,
            pythons=pythons,
        )
        found = comparison_asked.run(asked, silent)
        judged(found)
        failed = [one for one in found.figures.gates if not one.passed]
        if failed:
            first = failed[0]
            raise NotReproduced(
                f"The gate failed: {first.name} is {first.measured}, and {first.limit} is asked "
                f"({len(failed)} of {len(found.figures.gates)} do not hold).",
                why="The merged model does not do what the adapter on its base does.",
                hint="Merge without --gate, and see where it hurts: remerge compare --bisect.",
            )

    return judge
