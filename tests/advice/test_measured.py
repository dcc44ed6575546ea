"""Advice that rests on a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.advice.commands import ALWAYS
from remerge.errors import BadInput
from tests.serving.bench.made import benchmark
from tests.serving.bench.simulated import Machine, simulated


def written(place: Path, document: Any) -> Path:
    place.write_text(json.dumps(document))
    return place


def test_what_was_measured_takes_the_place_of_the_general_range(tmp_path: Path):
    found = benchmark()
    gain = found.gain("adapter", "cpu")
    assert gain is not None
    file = written(tmp_path / "bench.json", found.model_dump(mode="json"))
    commands = ALWAYS | {"bench"}
    general = remerge.advise(variants=1, commands=commands).costs.keep
    assert general.measure == "remerge bench BASE ADAPTER" and general.slower_by == (1.3, 2.0)
    told = remerge.advise(variants=1, bench=file, commands=commands)
    assert told.costs.keep.slower_by == (gain.low, gain.high)
    assert "measured by remerge bench in llama.cpp" in told.costs.keep.slower_from
    assert told.costs.keep.measure is None
    assert not any("bench" in line for line in (told.next, *told.after))
    kept = remerge.advise(variants=9, bench=tmp_path, commands=commands)
    assert kept.decision == "keep"
    assert not any("remerge bench" in line for line in (kept.next, *kept.after))


def test_a_benchmark_that_shows_nothing(tmp_path: Path):
    failed = benchmark(simulated(Machine(1), fails_at=4)).model_dump(mode="json")
    few = benchmark(simulated(Machine(1), rounds=3)).model_dump(mode="json")
    for document in (failed, few):
        with pytest.raises(BadInput, match="tells nothing of the adapter's cost"):
            remerge.advise(bench=written(tmp_path / "b.json", document))


@pytest.mark.parametrize(
    "document", [{}, {"format": "remerge-bench/1"}, {"format": "remerge-bench/2"}, []]
)
def test_a_file_that_is_none(tmp_path: Path, document: Any):
    with pytest.raises(BadInput):
        remerge.advise(bench=written(tmp_path / "b.json", document))
    with pytest.raises(BadInput):
        remerge.advise(bench=tmp_path / "none.json")
