"""`remerge bench` in transformers with PEFT, for real: run twice it says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import remerge

pytestmark = pytest.mark.timeout(1200)

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.proof
def test_run_twice_the_intervals_overlap():
    first, second = (
        remerge.bench(
            EXAMPLES / "base",
            EXAMPLES / "adapters" / "sort",
            engine="transformers",
            arms=("merged", "adapter", "idle"),
            concurrency=(1, 4),
            max_tokens=12,
            threads=1,
            repeats=6,
        )
        for _ in range(2)
    )
    for over in ("adapter", "idle"):
        one, other = (found.gain(over, "cpu") for found in (first, second))
        assert one is not None and other is not None
        assert one.low is not None and one.high is not None
        assert other.low is not None and other.high is not None
        assert one.low <= other.high and other.low <= one.high
    gain = first.gain("adapter", "cpu")
    assert gain is not None and gain.value > 1.1
    assert first.whole and first.versions["peft"]


@pytest.mark.slow
def test_an_adapter_that_only_peft_runs():
    """DoRA, which neither vLLM nor llama.cpp serves unmerged."""
    found = remerge.bench(
        EXAMPLES / "base",
        EXAMPLES / "adapters" / "dates",
        engine="transformers",
        concurrency=(2,),
        max_tokens=4,
        requests=2,
        repeats=1,
    )
    assert found.whole and len(found.samples) == 2
