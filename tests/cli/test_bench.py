"""`remerge bench`: what is refused before any work, and what is printed of a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import remerge
from remerge.cli import group
from tests.serving.bench.made import benchmark
from tests.serving.bench.simulated import Machine, simulated

ROOT = Path(__file__).parent.parent.parent
BASE, SORT = str(ROOT / "examples/base"), str(ROOT / "examples/adapters/sort")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--engine", "ollama"), 2, "Choose vllm, llama.cpp, transformers"),
        (("--arms", "adapter"), 2, "nothing to compare"),
        (("--arms", "merged"), 2, "nothing to compare"),
        (("--arms", "merged,base"), 2, "nothing to compare"),
        (("--concurrency", "1,two"), 2, "is no list of numbers"),
        (("--concurrency", "0"), 2, "1 at least"),
        (("--max-tokens", "1"), 2, "--max-tokens"),
        (("--max-tokens", "512", "--engine", "transformers"), 2, "leaves no room"),
        (("--prompts", "none.jsonl", "--engine", "transformers"), 2, "cannot be read"),
        (("-o", "none/b.json"), 2, "no directory"),
        (("-o", __file__), 2, "is a file"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], code: int, said: str):
    done = subprocess.run(
        [sys.executable, "-m", "remerge", "bench", BASE, SORT, *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def invoke(monkeypatch: pytest.MonkeyPatch, found: Any, *words: str) -> Any:
    """The command, with the work done before."""
    monkeypatch.setattr(remerge, "bench", lambda *_, **__: found, raising=False)
    return CliRunner().invoke(group, ["bench", BASE, SORT, *words])


def test_the_headline_stands_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = benchmark()
    done = invoke(monkeypatch, found, "-o", str(tmp_path / "r"))
    assert done.exit_code == 0, done.output
    *_, headline, first, second = done.stdout.splitlines()
    assert headline == found.headline and headline.startswith("merged generates ")
    assert first.endswith("bench.json") and second.endswith("bench.svg")
    for part in ("tokens/CPU s", "per second", "memory", "8 rounds of 16 tokens"):
        assert part in done.stdout
    assert "note: A note." in done.stderr


def test_json_is_the_whole_benchmark(monkeypatch: pytest.MonkeyPatch):
    found = benchmark()
    done = invoke(monkeypatch, found, "--json")
    assert json.loads(done.stdout) == found.model_dump(mode="json")
    assert invoke(monkeypatch, found, "-q").output == ""


def test_missing_figures_end_with_their_own_code(monkeypatch: pytest.MonkeyPatch):
    found = benchmark(simulated(Machine(1), fails_at=4))
    done = invoke(monkeypatch, found)
    assert done.exit_code == 75
    assert "failed" in done.stdout and "-" in done.stdout


def test_help_is_quick_to_say_what_it_does():
    done = CliRunner().invoke(group, ["bench", "--help"])
    assert done.exit_code == 0 and "--concurrency" in done.stdout
