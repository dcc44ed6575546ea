"""`remerge bench` in a real engine: run twice it says the same, and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.engines.servers.guardian import descendants
from remerge.serving.bench.measured import Benchmark
from tests.engines.places import needs, python_of

pytestmark = [*needs("llama.cpp"), pytest.mark.xdist_group("llama.cpp server")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, SORT = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"


def bench(output: Path | None, **how: Any) -> Benchmark:
    return remerge.bench(
        BASE,
        SORT,
        output,
        engine="llama.cpp",
        concurrency=(1, 4),
        max_tokens=24,
        threads=1,
        engine_python={"llama.cpp": str(python_of("llama.cpp"))},
        **how,
    )


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bench") / "merged"
    remerge.merge(BASE, SORT, place)
    return place


@pytest.mark.proof
def test_run_twice_the_intervals_overlap(merged: Path):
    first, second = (
        bench(merged, arms=("merged", "adapter", "idle"), prompts=EXAMPLES / "eval" / "sort.jsonl")
        for _ in range(2)
    )
    for over in ("adapter", "idle"):
        for level in (None, 1, 4):
            one, other = (found.gain(over, "cpu", level) for found in (first, second))
            assert one is not None and other is not None
            assert one.low is not None and one.high is not None
            assert other.low is not None and other.high is not None
            assert one.low <= other.high and other.low <= one.high, (over, level)
    gain = first.gain("adapter", "cpu")
    # The adapter's products are work that merged does not have.
    assert gain is not None and gain.value > 1.05
    assert first.whole and first.measure == "cpu" and first.settings.servers == "anew"
    assert all(arm.memory and arm.memory > 10**7 for arm in first.arms)
    # Every answer has as many tokens as were asked for.
    for sample in first.samples:
        requests = dict(zip(first.settings.concurrency, first.settings.requests, strict=True))
        assert sample.tokens == 24 * requests[sample.concurrency]


def test_a_quantised_file_is_measured_with_a_base_like_it(merged: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    python = {"llama.cpp": str(python_of("llama.cpp"))}
    remerge.export(merged, file, to="gguf:Q4_K_M", engine_python=python)
    found = bench(file, repeats=2, requests=4)
    assert found.model["merged"]["kind"] == "gguf"
    assert "too few for an interval" in found.headline


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: int):
    engine = f"llama.cpp={python_of('llama.cpp')}"
    words = ["bench", str(BASE), str(SORT), "--engine", "llama.cpp", "--engine-python", engine]
    process = subprocess.Popen(
        [sys.executable, "-m", "remerge", *words, "-o", str(tmp_path / "results")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        deadline = time.monotonic() + 300
        while len(started := descendants(process.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.iterdir())


def test_json_on_the_command_line(merged: Path):
    engine = f"llama.cpp={python_of('llama.cpp')}"
    words = ["bench", str(BASE), str(SORT), str(merged), "--engine", "llama.cpp"]
    words += ["--engine-python", engine, "--repeats", "1", "--requests", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "remerge", *words, "--concurrency", "2", "--max-tokens", "8"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["format"] == "remerge-bench/1" and str(EXAMPLES) not in done.stdout
    manifest = json.loads((merged / "remerge.json").read_text())
    assert told["model"]["merged"]["merge_key"] == manifest["merge_key"]
