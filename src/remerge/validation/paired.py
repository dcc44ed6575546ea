"""Statistics of two models that answered the same questions: is one worse, or was it chance?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from remerge.artefacts.test_result import Differing, Interval, TaskResult
from remerge.validation.judging import RIGHT, Answered
from remerge.validation.limits import Gate
from remerge.validation.questions import QuestionSet

Scores = Sequence[float] | npt.NDArray[np.float64]
_Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
# Of a two-sided 95 % interval, and of the test.
_TAIL = 0.025
SIGNIFICANT = 0.05
_KEY = 0x72656D65726765
_VALUES = 2**22


def bootstrap(scores: Scores) -> Interval:
    """The mean of scores from 0 to 1, with its 95 % percentile bootstrap interval (Efron 1979;
    10,000 resamples).

    The draws come from a counter-based generator with a fixed key: the same scores always have the
    same interval. Where all scores are equal there is nothing to draw, and the interval is what an
    exact one allows (Clopper and Pearson 1934 for scores of 0 or 1).
    """
    return _interval(_checked(scores), 0.0, 1.0)


def paired_difference(merged: Scores, adapter: Scores) -> Interval:
    """Mean of merged less adapter, question by question, with the interval of `bootstrap`: the same
    questions are drawn for both."""
    return _interval(_differences(merged, adapter), -1.0, 1.0)


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact test, two-sided (McNemar 1947): how probable it is that questions which only
    one of two models has right fall apart as unevenly as this, or more so, were both as good.

    Exact in whole numbers, and rounded once; 1 where no question is discordant.
    """
    pairs, fewer = lost + won, min(lost, won)
    ways, term = 0, 1
    for index in range(fewer + 1):
        ways += term
        term = term * (pairs - index) // (index + 1)
    return min(1.0, 2 * ways / 2**pairs)


def task_result(
    name: str, scorer: str, *, adapter: Scores, merged: Scores, base: Scores | None = None
) -> TaskResult:
    """All that is told of a set of questions, from each one's score from 0 to 1.

    A question is lost where the merged model scores lower than the adapter, and won where it scores
    higher. For right and wrong that is McNemar's test; for scores between them the exact sign test,
    which is the same sum.
    """
    differences = _differences(merged, adapter)
    lost, won = int((differences < 0).sum()), int((differences > 0).sum())
    return TaskResult(
        name=name,
        scorer=scorer,
        questions=len(differences),
        base=None if base is None else bootstrap(base),
        adapter=bootstrap(adapter),
        merged=bootstrap(merged),
        delta=paired_difference(merged, adapter),
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
    )


def score_gate(task: TaskResult, max_drop: float) -> Gate:
    """Whether the merged model does the task as the adapter did: it fails where the score drops by
    more than ``max_drop``, and chance would hardly do that (p below 0.05)."""
    failed = -task.delta.value > max_drop and task.p_value < SIGNIFICANT
    return Gate(
        f"score of {task.name}",
        f"{task.adapter.value:.4g} to {task.merged.value:.4g}, {task.lost} lost, {task.won} won, "
        f"p = {task.p_value:.2g}",
        f"a drop of {max_drop:g}, or p = {SIGNIFICANT:g}",
        not failed,
    )


def differing(
    questions: QuestionSet, *, adapter: Answered, merged: Answered, base: Answered | None = None
) -> tuple[Differing, ...]:
    """The questions that adapter and merged model answer differently, but for white space around:
    first those that were lost, then those won, then the others; each in the file's order."""
    found: list[tuple[int, Differing]] = []
    for index, question in enumerate(questions.questions):
        before, after = adapter.answers[index], merged.answers[index]
        if before.strip() == after.strip():
            continue
        change = merged.scores[index] - adapter.scores[index]
        told = Differing(
            task=questions.name,
            prompt=question.shown,
            expected=question.wanted,
            base=None if base is None else base.answers[index],
            adapter=before,
            merged=after,
            adapter_right=adapter.scores[index] >= RIGHT,
            merged_right=merged.scores[index] >= RIGHT,
        )
        found.append((0 if change < 0 else 1 if change > 0 else 2, told))
    return tuple(told for _, told in sorted(found, key=lambda pair: pair[0]))


def _checked(scores: Scores) -> _Floats:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("scores are numbers from 0 to 1, one for each question")
    return values


def _differences(merged: Scores, adapter: Scores) -> _Floats:
    after, before = _checked(merged), _checked(adapter)
    if after.shape != before.shape:
        raise ValueError("both models answer the same questions")
    return after - before


def _interval(values: _Floats, least: float, most: float) -> Interval:
    mean = float(values.mean())
    if values.min() == values.max():
        # A share of other values that n questions miss altogether with a probability of 2.5 %.
        unseen = 1 - _TAIL ** (1 / len(values))
        low, high = mean - unseen * (mean - least), mean + unseen * (most - mean)
    else:
        low, high = map(float, np.quantile(_means(values), (_TAIL, 1 - _TAIL)))
    return Interval(value=mean, low=low, high=high)


def _means(values: _Floats) -> _Floats:
    """Means of the resamples. Philox's own numbers, as numpy promises to keep only these."""
    count = len(values)
    generator = np.random.Philox(key=_KEY)
    found = np.empty(RESAMPLES)
    step = max(1, _VALUES // count)
    for first in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - first)
        raw = generator.random_raw(-(-rows * count // 2)).astype("<u8", copy=False)
        words = raw.view("<u4")[: rows * count].astype(np.uint64)
        # A multiple of 2^-32 in [0, 1) of the way through the questions (Lemire 2019).
        drawn = (words * np.uint64(count)) >> np.uint64(32)
        found[first : first + rows] = values[drawn.reshape(rows, count)].mean(axis=1)
    return found
