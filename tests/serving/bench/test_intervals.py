"""The interval of a ratio, against scipy's test, and on engines whose ratio is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from remerge.serving.bench.figures import gains, sample_of
from remerge.serving.bench.intervals import FEWEST, percentile, ratio_of
from remerge.serving.bench.measured import Gain
from tests.serving.bench.simulated import Machine, simulated

RATIOS = st.lists(st.floats(0.2, 5.0), min_size=FEWEST, max_size=14, unique=True)


@given(RATIOS)
def test_it_holds_what_the_signed_rank_test_does_not_reject(ratios: list[float]):
    """scipy's exact test accepts what lies just inside of the interval, and nothing outside."""
    found = ratio_of(ratios)
    assert found.low is not None and found.high is not None
    logs = np.log(ratios)
    walsh = np.array([(a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]])
    for end, outwards in ((found.low, -1), (found.high, 1)):
        gaps = np.abs(walsh - math.log(end))
        step = gaps[gaps > 1e-7].min(initial=0.1) / 2
        if step < 1e-6:
            continue
        for way, rejected in ((outwards, True), (-outwards, False)):
            told = stats.wilcoxon(logs - (math.log(end) + way * step), method="exact")
            assert bool(told.pvalue <= 0.05) is rejected or found.low == found.high


@given(RATIOS)
def test_the_other_way_round_it_is_the_inverse(ratios: list[float]):
    found, inverse = ratio_of(ratios), ratio_of([1 / ratio for ratio in ratios])
    assert inverse.value == pytest.approx(1 / found.value)
    assert found.low is not None and inverse.high == pytest.approx(1 / found.low)


def test_few_rounds_have_no_interval():
    for rounds in range(1, FEWEST):
        found = ratio_of([1.3] * rounds)
        assert (found.low, found.high) == (None, None) and found.contains_one
    assert ratio_of([1.1, 1.2, 1.3, 1.4, 1.5, 1.6]).low == pytest.approx(1.1)


@pytest.mark.parametrize("ratios", [[], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf], [math.nan]])
def test_what_is_no_ratio(ratios: list[float]):
    with pytest.raises(ValueError, match="above zero"):
        ratio_of(ratios)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_percentiles_are_numpys(values: list[float], share: float):
    assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")


def overall(machine: Machine, merged: float, adapter: float, **how: object) -> Gain:
    done = simulated(machine, merged, adapter, **how)  # type: ignore[arg-type]
    found = gains([sample_of(segment) for segment in done.segments], "cpu")
    return next(gain for gain in found if gain.concurrency is None)


RUNS = 200


@pytest.mark.parametrize("ratio", [1.0, 1.3])
@pytest.mark.parametrize(
    "noise",
    [
        {"noise": 0.02},
        {"noise": 0.1, "busy": 0.15},
        {"noise": 0.05, "drift": 0.1},
        {"noise": 0.02, "starts": 0.1},
    ],
    ids=["calm", "busy", "drifting", "another at each start"],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_true_ratio_is_inside(ratio: float, noise: dict[str, float], together: bool):
    """In 95 of 100 benchmarks, whatever disturbs them; of merged against merged that is 1."""
    inside = 0
    for seed in range(RUNS):
        found = overall(Machine(seed, **noise), 0.001, 0.001 * ratio, together=together)
        assert found.low is not None and found.high is not None
        inside += found.low <= ratio <= found.high
    # Three standard errors below 95 %.
    assert inside / RUNS >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / RUNS)


def test_two_benchmarks_overlap():
    drawn, apart = random.Random(1), 0
    for _ in range(RUNS):
        first, second = (
            overall(Machine(drawn.getrandbits(32), noise=0.1), 0.001, 0.0013) for _ in range(2)
        )
        assert first.low is not None and first.high is not None
        assert second.low is not None and second.high is not None
        apart += first.low > second.high or second.low > first.high
    assert apart <= 0.02 * RUNS


def test_a_difference_that_is_there_is_found():
    found = [
        overall(Machine(seed, noise=0.03, busy=0.02), 0.001, 0.0013, rounds=8)
        for seed in range(100)
    ]
    assert sum(gain.low > 1 for gain in found if gain.low is not None) >= 90


def test_servers_that_are_kept_hide_what_differs_between_starts():
    """Why they are started anew where that is quick: started once, the interval is too narrow."""
    inside = {0.0: 0, 60.0: 0}
    for slow in inside:
        for seed in range(RUNS):
            machine = Machine(seed, noise=0.02, starts=0.1, slow_start=slow)
            found = overall(machine, 0.001, 0.001)
            assert found.low is not None and found.high is not None
            inside[slow] += found.low <= 1 <= found.high
    assert inside[60.0] < 0.8 * RUNS < inside[0.0]
