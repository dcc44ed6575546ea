"""A gate before anything is published: the comparison that decides of an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remerge.api.options import Planned, Source, silent
from remerge.artefacts.making import Judge

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
        from remerge.validation.gate import not_held

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
        failure = not_held(
            found.figures.gates,
            "Merge without --gate, and see where it hurts: remerge compare --bisect.",
        )
        if failure is not None:
            raise failure

    return judge
