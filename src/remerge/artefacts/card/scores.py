"""Scores on the card, from the newest comparison that judged these very bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remerge.artefacts.card.escaping import clean, code, prose
from remerge.artefacts.manifest import FileRecord
from remerge.artefacts.test_result import (
    Figures,
    HarnessResult,
    Interval,
    TaskResult,
    read_statements,
)

# Half the width of a 95 % interval, in standard errors.
_WIDTH = 1.96
# The Hub's name of what a scorer measures, where it has one.
_METRICS = {"exact": "exact_match", "choice": "accuracy"}
# Asked of a set that has no id on the Hub.
_IN_HOUSE = "in-house"
_HARNESS = "lm-evaluation-harness"


def newest(output: Path, files: Sequence[FileRecord]) -> Figures | None:
    """The newest comparison of ``output``, passing over those of other bytes; raises `BadInput`
    for a test result that is none."""
    made = {record.name: record.sha256 for record in files}
    for one in reversed(read_statements(output)):
        if all(made.get(s.name) == s.digest.sha256 for s in one.subject):
            return one.predicate.figures
    return None


def model_index(name: str, figures: Figures, pipeline_tag: str | None) -> list[dict[str, Any]]:
    """The scores as the Hub's metadata has them; empty where nothing was scored."""
    # Its import takes a while, and most cards have no scores.
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    task = pipeline_tag or "text-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=_IN_HOUSE,
            dataset_name=clean(one.name),
            dataset_config=clean(one.name),
            metric_type=_METRICS.get(one.scorer, clean(Path(one.scorer).name)),
            metric_value=_short(one.merged.value),
            metric_args={
                "questions": one.questions,
                "confidence_95": [_short(one.merged.low), _short(one.merged.high)],
            },
        )
        for one in figures.tasks
        if math.isfinite(one.merged.value)
    ]
    results += [
        EvalResult(
            task_type=task,
            dataset_type=_HARNESS,
            dataset_name=clean(one.task),
            dataset_config=clean(one.task),
            metric_type=clean(one.metric),
            metric_value=_short(one.merged),
        )
        for one in figures.harness
        if math.isfinite(one.merged)
    ]
    return eval_results_to_model_index(clean(name), results) if results else []


def scores(figures: Figures, moment: str) -> list[str]:
    """The section on scores, in lines of Markdown."""
    passed = figures.verdict == "passed"
    lines = [
        f"Compared with the adapter on its base, {prose(moment)}, by {prose(figures.engine)}: "
        f"**{'passed' if passed else 'failed'}**.",
        "",
    ]
    rows = [row for one in figures.tasks for row in _task(one)]
    rows += [row for one in figures.harness for row in _harness(one)]
    if rows:
        lines += [
            "| set | questions | base | adapter | merged | merged less adapter |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "In parentheses: 95 % intervals.",
            "",
        ]
    for one in figures.logits:
        lines.append(
            f"- {prose(one.name)}: KL(adapter, merged) {one.kl_mean:.3g} nats over "
            f"{one.positions:,} positions, {one.top1:.1%} the same likeliest token; perplexity "
            f"{one.perplexity_adapter:.4g} with the adapter, {one.perplexity_merged:.4g} merged"
        )
    for gate in figures.gates:
        if not gate.passed:
            said = f"{prose(gate.measured)}, and {prose(gate.limit)} is asked"
            lines.append(f"- failed: {prose(gate.name)} is {said}")
    return lines


def _task(one: TaskResult) -> list[str]:
    cells = [
        f"{code(one.name)}, {prose(Path(one.scorer).name)}",
        f"{one.questions:,}",
        "" if one.base is None else _interval(one.base),
        _interval(one.adapter),
        _interval(one.merged),
        _interval(one.delta, signed=True),
    ]
    return [f"| {' | '.join(cells)} |"]


def _harness(one: HarnessResult) -> list[str]:
    cells = [
        f"{code(one.task)}, {prose(one.metric)}",
        "",
        "" if one.base is None else _with_error(one.base, one.base_error),
        _with_error(one.adapter, one.adapter_error),
        _with_error(one.merged, one.merged_error),
        f"{one.merged - one.adapter:+.3f}",
    ]
    return [f"| {' | '.join(cells)} |"]


def _interval(found: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def _with_error(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.3f}"
    low, high = value - _WIDTH * error, value + _WIDTH * error
    return _interval(Interval(value=value, low=low, high=high))


def _short(value: float) -> float:
    return round(value, 6)
