"""Figures of paired answers, against scipy's."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from remerge.validation.judging import Answered
from remerge.validation.paired import (
    bootstrap,
    differing,
    mcnemar,
    paired_difference,
    score_gate,
    task_result,
)
from remerge.validation.questions import Question, QuestionSet

RANDOM = np.random.default_rng(6)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(lost: int, won: int):
    p = mcnemar(lost, won)
    assert p == mcnemar(won, lost)
    expected = 1.0 if lost + won == 0 else stats.binomtest(lost, lost + won, 0.5).pvalue
    assert p == pytest.approx(expected, rel=1e-9)
    assert 0 < p <= 1


@pytest.mark.parametrize(("lost", "won"), [(5200, 4800), (10_000, 10_000), (12_345, 12_000)])
def test_mcnemar_of_thousands(lost: int, won: int):
    started = time.monotonic()
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6)
    assert time.monotonic() - started < 5


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(1, 1) == mcnemar(1, 2) == 1
    assert mcnemar(5, 0) == 2 / 32 and mcnemar(6, 0) == 2 / 64
    assert mcnemar(7, 1) == 2 * (1 + 8) / 256
    assert mcnemar(4000, 0) == 0  # 2^-3999 is smaller than any number of float64


@pytest.mark.parametrize(
    "scores",
    [
        (RANDOM.random(250) < 0.9).astype(float),
        (RANDOM.random(37) < 0.5).astype(float),
        RANDOM.random(111),
        np.array([0.0, 1.0, 1.0]),
        (np.arange(3000) % 7 == 0).astype(float),
    ],
    ids=lambda scores: str(len(scores)),
)
def test_the_bootstrap_is_scipy_s(scores: Any):
    found = bootstrap(scores)
    expected = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", batch=500, rng=1
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.06 * width)


def test_the_paired_bootstrap_is_scipy_s():
    adapter = (RANDOM.random(200) < 0.8).astype(float)
    merged = np.where(RANDOM.random(200) < 0.1, 1 - adapter, adapter)
    found = paired_difference(merged, adapter)
    expected = stats.bootstrap(
        (merged, adapter),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        batch=500,
        rng=1,
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value == pytest.approx(merged.mean() - adapter.mean())
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_any_scores_have_an_interval(scores: list[float]):
    found = bootstrap(scores)
    assert found == bootstrap(np.array(scores))
    assert -1e-9 <= found.low <= found.high <= 1 + 1e-9
    assert min(scores) - 1e-9 <= found.value <= max(scores) + 1e-9
    if min(scores) < max(scores):
        assert min(scores) - 1e-9 <= found.low and found.high <= max(scores) + 1e-9


@pytest.mark.parametrize("count", [1, 5, 250])
def test_where_all_are_right_the_interval_is_exact(count: int):
    expected = stats.binomtest(count, count).proportion_ci(0.95, "exact")
    right, wrong = bootstrap([1.0] * count), bootstrap([0.0] * count)
    assert (right.value, right.low, right.high) == pytest.approx((1, expected.low, 1))
    assert (wrong.value, wrong.low, wrong.high) == pytest.approx((0, 0, 1 - expected.low))
    same = paired_difference([1.0] * count, [1.0] * count)
    assert same.value == 0
    assert (same.low, same.high) == pytest.approx((expected.low - 1, 1 - expected.low))


@pytest.mark.parametrize("scores", [[], [1.5], [-0.1], [float("nan")], [[1.0]]])
def test_what_are_no_scores(scores: Any):
    with pytest.raises(ValueError):
        bootstrap(scores)
    with pytest.raises(ValueError):
        paired_difference([1.0, 0.0], [1.0])


def of(lost: int, won: int, count: int, base: float = 0.0) -> Any:
    """A set of questions, half of them right, of which some change."""
    adapter = np.array([1.0] * (count // 2) + [0.0] * (count - count // 2))
    merged = adapter.copy()
    merged[:lost] = 0
    merged[count - won :] = 1 if won else merged[count - won :]
    return task_result("t", "exact", adapter=adapter, merged=merged, base=[base] * count)


def test_a_result():
    found = of(7, 2, 100)
    assert (found.name, found.scorer, found.questions) == ("t", "exact", 100)
    assert (found.lost, found.won) == (7, 2)
    assert found.p_value == stats.binomtest(2, 9).pvalue
    assert (found.adapter.value, found.merged.value) == (0.5, 0.45)
    assert found.delta.value == pytest.approx(-0.05)
    assert found.delta.low < -0.05 < found.delta.high
    assert found.base is not None and found.base.value == 0
    assert task_result("t", "exact", adapter=[1.0], merged=[1.0]).base is None


@pytest.mark.parametrize(
    ("lost", "won", "count", "passes"),
    [
        (0, 0, 200, True),
        (1, 0, 200, True),  # one flipped answer is no failure
        (5, 0, 200, True),  # p = 0.0625
        (6, 0, 200, False),  # p = 0.031
        (0, 40, 200, True),
        (30, 29, 200, True),
        (40, 10, 200, False),
        (6, 0, 6000, True),  # significant, and a drop of exactly 0.001
        (7, 0, 6000, False),
    ],
)
def test_the_gate(lost: int, won: int, count: int, passes: bool):
    gate = score_gate(of(lost, won, count), 0.001)
    assert gate.passed == passes
    assert gate.name == "score of t"
    assert f"{lost} lost, {won} won" in gate.measured
    assert gate.limit == "a drop of 0.001, or p = 0.05"


def test_scores_between_right_and_wrong_fail_too():
    """All answers a little worse, and none of them wrong by one half."""
    found = task_result("t", "m:f", adapter=[1.0] * 20, merged=[0.6] * 20)
    assert (found.lost, found.won) == (20, 0)
    assert not score_gate(found, 0.001).passed
    assert score_gate(found, 0.5).passed


def test_what_differs():
    texts = ["same", "lost", "won", "other", "space"]
    questions = QuestionSet(
        "t", tuple(Question("q", "exact", text, expected=("a", "b")) for text in texts), 1, ""
    )
    adapter = Answered(("a", "a", "x", "x", "a"), (1.0, 1.0, 0.0, 0.0, 1.0))
    merged = Answered(("a", "x", "a", "y", " a\n"), (1.0, 0.0, 1.0, 0.0, 1.0))
    found = differing(questions, adapter=adapter, merged=merged)
    assert [one.prompt for one in found] == ["lost", "won", "other"]
    assert [(one.adapter_right, one.merged_right) for one in found] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    first = found[0]
    assert (first.task, first.expected, first.adapter, first.merged) == ("t", "a | b", "a", "x")
    assert first.base is None
    base = Answered(("n",) * 5, (0.0,) * 5)
    assert differing(questions, adapter=adapter, merged=merged, base=base)[0].base == "n"
    assert differing(questions, adapter=adapter, merged=adapter) == ()
