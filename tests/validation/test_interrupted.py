"""A comparison that was killed, started again, ends with the table of one that ran through."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import remerge
from tests.validation.artefacts import ADAPTERS, BASE, questions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 120
# What each side is asked: rows of every prompt, and but for noise an answer.
ASKED = {"base": 2 * COUNT, "artefact": 2 * COUNT, "adapter": 2 * COUNT, "noise": COUNT}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    remerge.merge(BASE, ADAPTERS / "sort", out)
    return out


@pytest.fixture(scope="module")
def table(output: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of one that ran through."""
    return figures(run(output, tmp_path_factory.mktemp("through")))


def start(output: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    asked = ["--eval", str(questions("sort")), "--limit", str(COUNT), "--no-record", "--json"]
    words = [str(BASE), str(ADAPTERS / "sort"), str(output), *asked, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "remerge", "compare", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, wrong = process.communicate(timeout=600)
    assert process.returncode == 0, wrong[-2000:]
    return json.loads(said)


def run(output: Path, cache: Path, *more: str) -> dict[str, Any]:
    return finish(start(output, cache, *more))


def figures(document: dict[str, Any]) -> dict[str, Any]:
    """The table: all figures but when and how long."""
    found = document.get("figures", document)
    beside = ("started", "seconds", "costs", "command")
    return {key: value for key, value in found.items() if key not in beside}


def costs(document: dict[str, Any]) -> dict[str, tuple[int, int]]:
    found = document.get("figures", document)["costs"]
    return {cost["side"]: (cost["asked"], cost["cached"]) for cost in found}


def answered(cache: Path) -> int:
    """Whole answers that lie in a cache."""
    lines = 0
    for file in cache.rglob("answers.jsonl"):
        lines += sum(bool(line.strip()) for line in file.read_bytes().splitlines())
    return lines + len(list(cache.rglob("*.npz")))


def cut_off(output: Path, cache: Path, enough: Callable[[], bool], how: signal.Signals) -> int:
    process = start(output, cache)
    deadline = time.monotonic() + 300
    while not enough() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "it was done before it was to be killed"
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again(
    output: Path, table: dict[str, Any], tmp_path: Path, how: signal.Signals
) -> None:
    draw = random.Random(int(how))
    reached = 0
    for _ in range(2):
        reached = draw.randrange(reached + 1, reached + 300)
        code = cut_off(output, tmp_path, lambda least=reached: answered(tmp_path) >= least, how)
        assert code == (-9 if how is signal.SIGKILL else 130)
        time.sleep(0.5)
        reached = answered(tmp_path)
    again = run(output, tmp_path)
    assert figures(again) == table
    asked = costs(again)
    assert {side: sum(pair) for side, pair in asked.items()} == ASKED
    # One answer a kill may be half a line.
    assert reached - 2 <= sum(cached for _, cached in asked.values()) <= reached
    last = run(output, tmp_path)
    assert figures(last) == table
    assert all(fresh == 0 for fresh, _ in costs(last).values())


def test_two_at_the_same_time(output: Path, table: dict[str, Any], tmp_path: Path) -> None:
    both = [start(output, tmp_path) for _ in range(2)]
    for process in both:
        assert figures(finish(process)) == table


def test_spoilt_caches_are_not_believed(
    output: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run(output, tmp_path)
    rows = sorted(tmp_path.rglob("*.npz"))
    rows[0].write_bytes(rows[0].read_bytes()[:-100])
    rows[len(rows) // 2].write_bytes(b"")
    for file in tmp_path.rglob("answers.jsonl"):
        file.write_bytes(file.read_bytes()[:-20])
    for file in tmp_path.rglob("told.json"):
        file.write_bytes(file.read_bytes()[:-20])
    again = run(output, tmp_path)
    assert figures(again) == table
    assert sum(fresh for fresh, _ in costs(again).values()) == 2 + 3


def test_other_arithmetic_adapters_and_limits_do_not_share_answers(
    output: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run(output, tmp_path)
    rounded = run(output, tmp_path, "--dtype", "bfloat16")
    assert all(cached == 0 for _, cached in costs(rounded).values())
    assert figures(rounded)["logits"] != table["logits"]
    few = run(output, tmp_path, "--limit", "10")
    assert all(fresh == 0 for fresh, _ in costs(few).values())
    assert figures(few)["logits"][0]["prompts"] == 10
    assert figures(run(output, tmp_path)) == table


def test_without_a_cache(output: Path, table: dict[str, Any], tmp_path: Path) -> None:
    """Neither a home that cannot be written nor an artefact that cannot is a failure."""
    (tmp_path / "file").write_text("no directory")
    assert figures(run(output, tmp_path / "file")) == table
    assert figures(run(output, tmp_path / "fresh", "--no-cache")) == table
    assert not list((tmp_path / "fresh").rglob("answers.jsonl"))
