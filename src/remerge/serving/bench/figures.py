"""Figures from the turns of all rounds: throughput, latencies, gains with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from remerge.serving.bench.intervals import FEWEST, Ratio, percentile, ratio_of
from remerge.serving.bench.measured import (
    ArmName,
    Gain,
    Latency,
    Measure,
    Point,
    Sample,
    Spread,
)
from remerge.serving.bench.rounds import Segment

# A gain within this of one is of no account: an interval inside of it says that there is none.
_NEAR = 1.05
_SECOND = {"cpu": "CPU second", "wall": "second"}


def sample_of(segment: Segment) -> Sample:
    """A turn without its single answers."""
    return Sample(
        round=segment.round,
        concurrency=segment.concurrency,
        arm=segment.arm,
        turn=segment.turn,
        seconds=segment.seconds,
        cpu_seconds=segment.cpu_seconds,
        tokens=sum(answer.tokens for answer in segment.answers),
        failed=sum(answer.fault is not None for answer in segment.answers),
    )


def points(segments: Sequence[Segment]) -> tuple[Point, ...]:
    """Every arm at every concurrency, in the order of concurrencies, then of arms."""
    every: set[tuple[int, ArmName]] = {(one.concurrency, one.arm) for one in segments}
    keys = sorted(every, key=_order)
    return tuple(
        _point(arm, level, [s for s in segments if (s.concurrency, s.arm) == (level, arm)])
        for level, arm in keys
    )


def gains(samples: Sequence[Sample], measure: Measure) -> tuple[Gain, ...]:
    """Merged over every other arm: over all concurrencies first, then at each.

    A gain over all concurrencies is a round's geometric mean. What a failed request belongs to is
    left out, and so is a gain over all of which it is a part.
    """
    levels = sorted({sample.concurrency for sample in samples})
    others: list[ArmName] = [
        arm for arm in ("adapter", "idle") if any(sample.arm == arm for sample in samples)
    ]
    found: list[Gain] = []
    for over in others:
        by_level = {level: _ratios(samples, over, level, measure) for level in levels}
        together = [by_level[level] for level in levels]
        if levels and all(together):
            rounds = zip(*together, strict=True)
            overall = [math.exp(sum(map(math.log, one)) / len(one)) for one in rounds]
            found.append(_gain(over, measure, None, ratio_of(overall)))
        found += [
            _gain(over, measure, level, ratio_of(ratios))
            for level, ratios in by_level.items()
            if ratios
        ]
    return tuple(found)


def _ratios(samples: Sequence[Sample], over: ArmName, level: int, measure: Measure) -> list[float]:
    """Of each round: merged's tokens for a second, by those of the other arm; none where one of
    them cannot be told."""
    rates: dict[tuple[str, int], float | None] = {
        (sample.arm, sample.round): _rate(sample, measure)
        for sample in samples
        if sample.concurrency == level and sample.arm in ("merged", over)
    }
    rounds = sorted({number for _, number in rates})
    found: list[float] = []
    for number in rounds:
        merged, other = rates.get(("merged", number)), rates.get((over, number))
        if not merged or not other:
            return []
        found.append(merged / other)
    return found


def _rate(sample: Sample, measure: Measure) -> float | None:
    seconds = sample.cpu_seconds if measure == "cpu" else sample.seconds
    if sample.failed or not seconds:
        return None
    return sample.tokens / seconds


def _gain(over: ArmName, measure: Measure, level: int | None, ratio: Ratio) -> Gain:
    return Gain(
        over=over,
        measure=measure,
        concurrency=level,
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        rounds=ratio.rounds,
        says=_says(over, measure, ratio),
    )


def _says(over: ArmName, measure: Measure, ratio: Ratio) -> str:
    """A gain in words that claim no more than the interval does."""
    other = {"adapter": "the adapter", "idle": "the base in the adapter's engine"}.get(over, over)
    rounds = f"{ratio.rounds} round{'s' if ratio.rounds > 1 else ''}"
    claim = f"merged generates {ratio.value:.2f} times the tokens of {other} per {_SECOND[measure]}"
    if ratio.low is None or ratio.high is None:
        return f"{claim} in {rounds}, too few for an interval: run at least {FEWEST} (--repeats)"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}], {rounds}"
    if not ratio.contains_one:
        return f"{claim} {interval}"
    if ratio.low >= 1 / _NEAR and ratio.high <= _NEAR:
        return (
            f"no difference shown between merged and {other} per {_SECOND[measure]}: "
            f"{ratio.value:.2f} times the tokens, and hardly more or less {interval}"
        )
    return (
        f"no difference shown between merged and {other} per {_SECOND[measure]}: the rounds are "
        f"too noisy to tell, {ratio.value:.2f} times the tokens {interval}"
    )


def _point(arm: ArmName, level: int, segments: Sequence[Segment]) -> Point:
    samples = [sample_of(segment) for segment in segments]
    failed = sum(sample.failed for sample in samples)
    if failed:
        return Point(
            arm=arm,
            concurrency=level,
            failed=failed,
            tokens_per_second=None,
            tokens_per_cpu_second=None,
            first_token=None,
            between_tokens=None,
        )
    cpu = [_rate(sample, "cpu") for sample in samples]
    return Point(
        arm=arm,
        concurrency=level,
        failed=0,
        tokens_per_second=_spread([sample.tokens / sample.seconds for sample in samples]),
        tokens_per_cpu_second=_spread([rate for rate in cpu if rate]) if all(cpu) else None,
        first_token=_latency(segments, _firsts),
        between_tokens=_latency(segments, _betweens),
    )


def _firsts(segment: Segment) -> list[float]:
    return [answer.first for answer in segment.answers if answer.first is not None]


def _betweens(segment: Segment) -> list[float]:
    return [gap for answer in segment.answers for gap in answer.between]


def _latency(
    segments: Sequence[Segment], values: Callable[[Segment], list[float]]
) -> Latency | None:
    each = [found for found in map(values, segments) if found]
    pooled = [value for found in each for value in found]
    if not pooled:
        return None
    p50, p95, p99 = (percentile(pooled, share) for share in (0.50, 0.95, 0.99))
    rounds = _spread([percentile(found, 0.5) for found in each])
    return Latency(p50=p50, p95=p95, p99=p99, rounds=rounds)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), low=min(values), high=max(values))


def _order(key: tuple[int, ArmName]) -> tuple[int, int]:
    return key[0], ("merged", "adapter", "idle").index(key[1])
