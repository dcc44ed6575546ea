"""The example adapters, trained apart, in one model: each still does what it does alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

import remerge

EXAMPLES = Path(__file__).parent.parent / "examples"
TASKS = ("sort", "dates", "add")
LINES = 100
# What docs/several.md states: right answers of 100 that a task may lose in the sum of three.
DISTANCE = 10


@pytest.fixture(scope="module")
def scoring() -> ModuleType:
    path = EXAMPLES.parent / "scripts" / "score.py"
    spec = importlib.util.spec_from_file_location("score", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    import sys

    sys.modules["score"] = module
    spec.loader.exec_module(module)
    return module


def correct(scoring: ModuleType, adapters: list[str], task: str) -> int:
    places: list[Any] = [EXAMPLES / "adapters" / name for name in adapters]
    model = remerge.open_merged(EXAMPLES / "base", places).load_model().float().eval()
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "base")
    return scoring.score(model, tokenizer, EXAMPLES / "eval" / f"{task}.jsonl", LINES).correct


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_sum_of_three_keeps_each(scoring: ModuleType, task: str) -> None:
    alone = correct(scoring, [task], task)
    together = correct(scoring, list(TASKS), task)
    assert alone - together <= DISTANCE, (alone, together)


@pytest.mark.slow
def test_opposite_answers_do_not_add_up(scoring: ModuleType) -> None:
    """The pair that `remerge conflicts` ranks worst: the sum cannot answer both ways."""
    pair = ["agree", "contradict"]
    right = [correct(scoring, pair, task) for task in pair]
    assert sum(right) <= LINES
