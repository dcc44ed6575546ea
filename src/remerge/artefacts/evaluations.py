"""What was measured of an artefact, in short: verdict, scores and date of each test result."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remerge.artefacts.manifest import parsed
from remerge.artefacts.test_result import Interval, Statement


@dataclass(frozen=True)
class Score:
    """One set of questions: the merged model's score with its 95 % interval, and how far it is from
    the adapter's on its base."""

    name: str
    metric: str
    merged: float
    low: float | None
    high: float | None
    adapter: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None


@dataclass(frozen=True)
class Evaluation:
    """One test result. ``these_bytes``: whether it judged the very files that are asked about, None
    where their digests are not known; ``divergence`` is the mean KL divergence in nats by text."""

    date: str
    verdict: str
    engine: str
    reference: str
    scores: tuple[Score, ...]
    divergence: dict[str, float]
    failed: tuple[str, ...]
    these_bytes: bool | None

    def document(self) -> dict[str, Any]:
        return asdict(self)


def statement_from(content: bytes, where: str) -> Statement:
    """A test result from its bytes; raises `BadInput` for what is none."""
    return parsed(Path(where), content.replace(b'"_type"', b'"type"', 1), Statement)


def evaluation_of(statement: Statement, digests: Collection[str]) -> Evaluation:
    """A test result in short; ``digests`` are the SHA-256 of the files that are asked about."""
    figures = statement.predicate.figures
    judged = {subject.digest.sha256 for subject in statement.subject}
    tasks = [
        _score(one.name, one.scorer, one.merged, one.adapter, one.delta) for one in figures.tasks
    ]
    harness = [
        Score(one.task, one.metric, one.merged, None, None, one.adapter, None, None, None)
        for one in figures.harness
    ]
    return Evaluation(
        date=figures.started,
        verdict=figures.verdict,
        engine=figures.engine,
        reference=figures.reference,
        scores=(*tasks, *harness),
        divergence={one.name: one.kl_mean for one in figures.logits},
        failed=tuple(gate.name for gate in figures.gates if not gate.passed),
        these_bytes=bool(judged) and judged <= set(digests) if digests else None,
    )


def _score(name: str, metric: str, merged: Interval, adapter: Interval, delta: Interval) -> Score:
    return Score(
        name,
        metric,
        merged.value,
        merged.low,
        merged.high,
        adapter.value,
        delta.value,
        delta.low,
        delta.high,
    )
