"""What is told of the turns: medians, percentiles, sentences, and nothing where requests failed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from remerge.serving.bench import figures
from remerge.serving.bench.intervals import ratio_of
from remerge.serving.bench.load import Answer
from remerge.serving.bench.measured import ArmName
from remerge.serving.bench.rounds import Segment
from tests.serving.bench.simulated import Machine, simulated


def segment(number: int, arm: ArmName, seconds: float, *, level: int = 1) -> Segment:
    answers = tuple(
        Answer(10, seconds * (1 + place) / 10, (seconds / 100, seconds / 50 * (1 + place)))
        for place in range(4)
    )
    return Segment(number, level, arm, 0, seconds, 2 * seconds, answers)


def test_points_are_medians_of_rounds_and_percentiles_of_requests():
    segments = [segment(number, "merged", 1.0 + number) for number in range(5)]
    (point,) = figures.points(segments)
    rates = [40 / (1 + number) for number in range(5)]
    assert point.tokens_per_second is not None and point.tokens_per_cpu_second is not None
    assert point.tokens_per_second.median == pytest.approx(np.median(rates))
    assert (point.tokens_per_second.low, point.tokens_per_second.high) == (8.0, 40.0)
    assert point.tokens_per_cpu_second.median == pytest.approx(np.median(rates) / 2)
    firsts = [answer.first for one in segments for answer in one.answers]
    between = [gap for one in segments for answer in one.answers for gap in answer.between]
    for told, values in ((point.first_token, firsts), (point.between_tokens, between)):
        assert told is not None
        expected = [np.quantile(values, q, method="inverted_cdf") for q in (0.5, 0.95, 0.99)]
        assert [told.p50, told.p95, told.p99] == expected


def test_gains_are_of_the_same_round():
    """Rounds in which the machine was ten times slower change nothing."""
    segments = [
        segment(number, arm, seconds * (10 if number % 2 else 1), level=level)
        for number in range(6)
        for level, merged, adapter in ((1, 1.0, 1.5), (8, 1.0, 1.2))
        for arm, seconds in (("merged", merged), ("adapter", adapter + number / 100))
    ]
    found = figures.gains([figures.sample_of(one) for one in segments], "wall")
    assert [(gain.over, gain.concurrency) for gain in found] == [
        ("adapter", None),
        ("adapter", 1),
        ("adapter", 8),
    ]
    expected = ratio_of([1.5 + number / 100 for number in range(6)])
    assert found[1].value == pytest.approx(expected.value)
    assert found[1].low == pytest.approx(expected.low)
    both = ratio_of([math.sqrt((1.5 + n / 100) * (1.2 + n / 100)) for n in range(6)])
    assert found[0].value == pytest.approx(both.value)


def test_a_failed_request_voids_its_figures_and_those_that_need_them():
    done = simulated(Machine(1), fails_at=4)
    samples = [figures.sample_of(one) for one in done.segments]
    by_key = {(p.arm, p.concurrency): p for p in figures.points(done.segments)}
    void = by_key["adapter", 4]
    assert void.failed > 0 and void.tokens_per_second is None and void.first_token is None
    assert by_key["merged", 4].tokens_per_second is not None
    assert [gain.concurrency for gain in figures.gains(samples, "cpu")] == [1]


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1.3, 1.31, 1.29, 1.3, 1.32, 1.28], "merged generates 1.30 times the tokens of the "),
        ([0.7, 0.71, 0.69, 0.7, 0.72, 0.68], "merged generates 0.70 times the tokens of the "),
        ([1.01, 0.99, 1.02, 0.98, 1.0, 1.005], "and hardly more or less"),
        ([1.4, 0.8, 1.3, 0.7, 1.1, 1.0], "too noisy to tell"),
        ([1.3, 1.4, 1.35], "too few for an interval"),
    ],
)
def test_sentences_claim_what_the_interval_does(ratios: list[float], said: str):
    segments = [
        segment(number, arm, seconds)
        for number, ratio in enumerate(ratios)
        for arm, seconds in (("merged", 1.0), ("adapter", ratio))
    ]
    gain = figures.gains([figures.sample_of(one) for one in segments], "cpu")[0]
    assert said in gain.says and "CPU second" in gain.says
    shown = gain.low is not None and gain.high is not None and not gain.low <= 1 <= gain.high
    assert gain.says.startswith("merged generates") == (shown or gain.low is None)
