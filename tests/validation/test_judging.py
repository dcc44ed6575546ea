"""Answers and what is said of them."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.errors import BadInput, UsageError
from remerge.validation.judging import Scorer, answered, open_scorer, score
from remerge.validation.questions import Question, QuestionSet


def exact(*expected: str) -> Question:
    return Question("q, line 1", "exact", "p", expected=expected)


def contains(*expected: str) -> Question:
    return Question("q, line 1", "contains", "p", expected=expected)


def pattern(text: str) -> Question:
    return Question("q, line 1", "regex", "p", pattern=text)


CHOICE = Question("q, line 1", "choice", "p", choices=("yes", " no"), right=1)


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (exact("a b"), "\n a b \t", True),
        (exact(" a b\n"), "a b", True),
        (exact("a b"), "a  b", False),
        (exact("a"), "A", False),
        (exact("a", "b"), "b", True),
        (exact("a"), "a and more", False),
        (exact("👩‍👩‍👧"), "👩‍👩‍👧", True),
        (exact("é"), "e\u0301", False),
        (exact(""), " ", True),
        (contains("b", "x"), "abc", True),
        (contains(" b "), "abc", True),
        (contains("B"), "abc", False),
        (contains("北京"), "我在北京。", True),
        (pattern("^4[0-9]$"), " 42\n", True),
        (pattern("^4[0-9]$"), "142", False),
        (pattern("(?i)YES"), "well, yes.", True),
        (pattern(r"\p{Han}"), "我", True),
        (CHOICE, " no", True),
        (CHOICE, "yes", False),
        (CHOICE, "", False),
    ],
)
def test_scores(question: Question, answer: str, right: bool):
    assert score(question, answer) == float(right)


@settings(deadline=None)
@given(
    st.sampled_from([r"\d+", r"^a*b?$", r"[^x]\s", r"(ab|ba){2}", r"\bfo+\b", r"\w\W", "é|🎉"]),
    st.text(alphabet="abfox 01é北Ж🎉\n\t_-.,"),
)
def test_expressions_are_python_s(text: str, answer: str):
    assert score(pattern(text), answer) == float(re.search(text, answer.strip()) is not None)


def test_where_expressions_are_unicode_s():
    """Marks belong to words, as Unicode has it (UTS 18) and Python's `re` has not."""
    assert score(pattern(r"^\w+$"), "हिन्दी") == 1 and not re.search(r"^\w+$", "हिन्दी")


@settings(deadline=None)
@given(st.text())
def test_an_answer_is_itself(answer: str):
    assert score(exact(answer), f" {answer}\n") == 1
    assert score(contains(answer), f"<{answer.strip()}>") == 1


def test_an_expression_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("remerge.validation.judging._SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"line 1: the regex .* was not done"):
        score(pattern("(?:a?){5000}a{5000}"), "a" * 5000)
    assert time.monotonic() - started < 20


def own(function: Any) -> float:
    document = {"prompt": "p", "tests": [1]}
    return score(Question("q, line 7", "m:f", "p", document=document), " said ", function)


def test_a_function_of_the_user_s_own():
    seen: list[Any] = []

    def function(answer: str, question: dict[str, Any]) -> bool:
        seen.append((answer, question["tests"]))
        question["tests"] = None
        return True

    assert own(function) == own(function) == 1
    document = {"tests": [1]}
    question = Question("q", "m:f", "p", document=document)
    score(question, "a", function)
    assert document == {"tests": [1]}
    assert seen == [(" said ", [1]), (" said ", [1]), ("a", [1])]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(False, 0), (1, 1), (0.25, 0.25), (np.bool_(True), 1), (np.float32(0.5), 0.5)],
)
def test_what_a_function_may_say(value: object, expected: float):
    assert own(lambda answer, question: value) == expected


@pytest.mark.parametrize(
    "value", [None, "yes", 1.01, -0.1, float("nan"), float("inf"), 10**400, [1], 1j, np.ones(2)]
)
def test_what_a_function_may_not_say(value: object):
    with pytest.raises(BadInput, match=r"q, line 7: the scorer m:f (gave|failed)"):
        own(lambda answer, question: value)


def test_a_function_that_fails():
    def leaves(answer: str, question: dict[str, Any]) -> bool:
        sys.exit(0)

    def fails(answer: str, question: dict[str, Any]) -> bool:
        return question["nothing"]

    for function in (leaves, fails, lambda: True):
        with pytest.raises(BadInput, match="q, line 7: the scorer m:f failed: "):
            own(function)


def test_functions_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_scorer_here.py").write_text(
        "import own_neighbour\nf = lambda answer, question: len(answer) / 10\nx = 3\n"
    )
    (tmp_path / "own_neighbour.py").write_text("")
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_leaving.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scorer = open_scorer("own_scorer_here:f")
    assert scorer.name == "own_scorer_here:f"
    assert score(exact(), "12345", scorer.function) == 0.5
    # One that is installed.
    assert open_scorer("os.path:exists").function is not None
    for name, said in [
        ("own_scorer_here:g", "cannot be imported: AttributeError"),
        ("own_scorer_here:x", "no function"),
        ("own_broken:f", "cannot be imported: ZeroDivisionError"),
        ("own_leaving:f", "cannot be imported: SystemExit"),
        ("own_missing:f", "cannot be imported: ModuleNotFoundError"),
        ("best", "no scorer 'best'"),
        ("a b:c", "no scorer"),
        (":f", "no scorer"),
        ("m:", "no scorer"),
        ("", "no scorer"),
        ("../m:f", "no scorer"),
    ]:
        with pytest.raises(UsageError, match=said):
            open_scorer(name)
    assert open_scorer("exact") == Scorer("exact")


def test_all_answers():
    questions = QuestionSet("q", (exact("a"), CHOICE, pattern("b")), 1, "")
    found = answered(questions, ["a ", " no", "c"])
    assert found.answers == ("a ", " no", "c") and found.scores == (1.0, 1.0, 0.0)
    with pytest.raises(ValueError):
        answered(questions, ["a"])
