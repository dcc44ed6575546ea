"""Questions from files: what a line means, and every line that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remerge.errors import BadInput, RemergeError, UsageError
from remerge.validation.judging import Scorer, open_scorer
from remerge.validation.questions import Question
from remerge.validation.tasks import Evaluation, parse_eval, parse_evals, read_questions

EVAL = Path(__file__).resolve().parents[2] / "examples" / "eval"
CHAT = [{"role": "user", "content": "hi"}]


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def one(tmp_path: Path, line: object, scorer: str | None = None) -> Question:
    given = None if scorer is None else open_scorer(scorer)
    (found,) = read_questions(write(tmp_path / "q.jsonl", line), "q", given).questions
    return found


def test_the_examples():
    for path in sorted(EVAL.glob("*.jsonl")):
        found = read_questions(path, path.stem)
        assert (found.name, found.scorer, len(found.questions)) == (path.stem, "exact", 250)
        assert len(found.first(7).questions) == 7
        assert len(found.first(None).questions) == 250


@pytest.mark.parametrize(
    ("line", "scorer", "wanted"),
    [
        ({"prompt": "p", "expected": "a"}, "exact", "a"),
        ({"prompt": "p", "expected": ["a", "b"]}, "exact", "a | b"),
        ({"prompt": "p", "expected": "a", "scorer": "contains"}, "contains", "a"),
        ({"prompt": "p", "regex": "^a+$"}, "regex", "/^a+$/"),
        ({"prompt": "p", "regex": r"\p{Lu}"}, "regex", r"/\p{Lu}/"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 1}, "choice", "y"),
        ({"prompt": "p", "choices": ["x", "y"], "label": "B"}, "choice", "y"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": "y"}, "choice", "y"),
        ({"prompt": "p", "choices": ["x", "y"], "expected": "y"}, "choice", "y"),
        ({"prompt": "p", "choices": ["x", "y"], "expected": ["y"]}, "choice", "y"),
        ({"prompt": "p", "choices": ["x", "y"], "expected": 0}, "choice", "x"),
        ({"prompt": "p", "choices": ["A", "B"], "answer": "B"}, "choice", "B"),
        ({"prompt": "p", "choices": ["1", "0"], "answer": "0"}, "choice", "0"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 1, "label": "B"}, "choice", "y"),
        (
            {"prompt": "p", "choices": ["x", "y"], "answer": 1, "scorer": "choice_norm"},
            "choice_norm",
            "y",
        ),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 1, "scorer": "exact"}, "exact", "y"),
        ({"prompt": "p", "expected": "a", "regex": "b", "scorer": "regex"}, "regex", "/b/"),
        ({"prompt": "p", "expected": "a", "choices": None, "regex": None}, "exact", "a"),
        ({"messages": CHAT, "expected": "a", "id": 3}, "exact", "a"),
        ({"messages": CHAT, "prompt": None, "expected": "a"}, "exact", "a"),
    ],
)
def test_what_a_line_means(tmp_path: Path, line: dict[str, Any], scorer: str, wanted: str):
    found = one(tmp_path, line)
    assert (found.scorer, found.wanted) == (scorer, wanted)
    assert found.of_choices == (scorer in ("choice", "choice_norm"))
    assert found.shown == ("user: hi" if "messages" in line else "p")
    assert found.document == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("7", "no prompt or messages"),
        ({"expected": "a"}, "no prompt or messages"),
        ({"prompt": "", "expected": "a"}, "no prompt or messages"),
        ({"prompt": " \n", "expected": "a"}, "no prompt or messages"),
        ({"prompt": ["p"], "expected": "a"}, "no prompt or messages"),
        ({"prompt": "p", "messages": CHAT, "expected": "a"}, "a prompt and messages"),
        ({"messages": [], "expected": "a"}, "no list of messages"),
        ({"messages": "hi", "expected": "a"}, "no list of messages"),
        ({"messages": ["hi"], "expected": "a"}, "no list of messages"),
        ({"messages": [{"content": "hi"}], "expected": "a"}, "no list of messages"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "a"}], "expected": "a"},
            "has answered already",
        ),
        ({"prompt": "p"}, "an expected answer, choices or a regex"),
        ({"prompt": "p", "expected": None}, "an expected answer, choices or a regex"),
        ({"prompt": "p", "expected": 42}, "neither a text nor a list"),
        ({"prompt": "p", "expected": []}, "neither a text nor a list"),
        ({"prompt": "p", "expected": ["a", 1]}, "neither a text nor a list"),
        ({"prompt": "p", "expected": ["a", " "], "scorer": "contains"}, "contains nothing"),
        ({"prompt": "p", "expected": "a", "regex": "a"}, "has several of"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 0, "regex": "a"}, "has several of"),
        ({"prompt": "p", "regex": "("}, "the regex"),
        ({"prompt": "p", "regex": "a{99999999999}"}, "the regex"),
        ({"prompt": "p", "regex": "(" * 3000 + ")" * 3000}, "the regex"),
        ({"prompt": "p", "regex": ""}, "the regex is empty"),
        ({"prompt": "p", "regex": "a" * 20_000}, "the regex has more than"),
        ({"prompt": "p", "regex": ["a"]}, "the regex is no text"),
        ({"prompt": "p", "choices": ["x", "y"]}, "does not say which"),
        ({"prompt": "p", "choices": ["x"], "answer": 0}, "no list of two"),
        ({"prompt": "p", "choices": "xy", "answer": 0}, "no list of two"),
        ({"prompt": "p", "choices": ["x", ""], "answer": 0}, "no list of two"),
        ({"prompt": "p", "choices": ["x", 2], "answer": 0}, "no list of two"),
        ({"prompt": "p", "choices": {"text": ["x", "y"]}, "answer": 0}, "no list of two"),
        ({"prompt": "p", "choices": ["x", " x"], "answer": 0}, "the same"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 2}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": -1}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": True}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 1.0}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": "C"}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": "1"}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["x", "y"], "expected": ["x", "y"]}, "none of 2 choices"),
        ({"prompt": "p", "choices": ["B", "A"], "answer": "A"}, "the text of another"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 0, "label": "B"}, "several choices"),
        ({"prompt": "p", "expected": "a", "scorer": "regex"}, "by regex: it has no regex"),
        ({"prompt": "p", "regex": "a", "scorer": "exact"}, "by exact: it has no expected"),
        ({"prompt": "p", "expected": "a", "scorer": "choice"}, "by choice: it has no choices"),
        ({"prompt": "p", "expected": "a", "scorer": "best"}, "no scorer 'best'"),
        ({"prompt": "p", "expected": "a", "scorer": "os:system"}, "never runs code"),
        ({"prompt": "p", "expected": "a", "scorer": ["exact"]}, "no scorer"),
        ({"prompt": "p", "expected": "a", "max_tokens": 0}, "no number of tokens"),
        ({"prompt": "p", "expected": "a", "max_tokens": True}, "no number of tokens"),
        ({"prompt": "p", "expected": "a", "max_tokens": "9"}, "no number of tokens"),
        ({"prompt": "\ud800", "expected": "a"}, "half a character"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: object, said: str):
    good = {"prompt": "p", "expected": "a"}
    file = write(tmp_path / "q.jsonl", good, line, good)
    with pytest.raises(BadInput, match=said) as caught:
        read_questions(file, "q")
    assert f"{file}, line 2" in str(caught.value)


def test_the_page_s_questions(tmp_path: Path):
    page = (EVAL.parents[1] / "docs" / "compare.md").read_text()
    block = page.split("```json\n")[1].split("```")[0]
    found = read_questions(write(tmp_path / "q.jsonl", block), "q")
    scorers = [question.scorer for question in found.questions]
    assert scorers == ["exact", "contains", "regex", "choice", "contains"]
    assert [question.wanted for question in found.questions[2:4]] == [r"/\b42\b/", "no"]
    assert found.questions[4].max_tokens == 60


def test_a_file_without_questions(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no question"):
        read_questions(write(tmp_path / "q.jsonl", "", "  "), "q")
    with pytest.raises(UsageError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl", "q")


def test_the_same_prompt_twice(tmp_path: Path):
    line = {"prompt": "p", "expected": "a"}
    assert len(read_questions(write(tmp_path / "q.jsonl", line, line), "q").questions) == 2


def test_a_scorer_for_all_lines(tmp_path: Path):
    both = {"prompt": "p", "expected": "a", "scorer": "exact"}
    assert one(tmp_path, both, "contains").scorer == "contains"
    choices = {"prompt": "p", "choices": ["x", "y"], "answer": "B"}
    assert one(tmp_path, choices, "choice_norm").right == 1
    assert one(tmp_path, choices, "contains").expected == ("y",)
    with pytest.raises(BadInput, match="line 2 cannot be judged by regex"):
        file = write(tmp_path / "q.jsonl", {"prompt": "p", "regex": "a"}, both)
        read_questions(file, "q", open_scorer("regex"))


def test_a_function_takes_any_line(tmp_path: Path):
    own = Scorer("m:f", lambda answer, question: True)
    file = write(
        tmp_path / "q.jsonl",
        {"prompt": "p"},
        {"prompt": "p", "expected": 42},
        {"prompt": "p", "choices": ["x"], "regex": "(", "scorer": "z"},
        {"prompt": "p", "expected": ["a", 1]},
    )
    found = read_questions(file, "q", own)
    assert found.scorer == "m:f" and found.function is own.function
    assert [question.wanted for question in found.questions] == ["", "", "", "a"]
    with pytest.raises(BadInput, match="no prompt"):
        read_questions(write(tmp_path / "r.jsonl", {"expected": "a"}), "q", own)


def test_lines_of_several_scorers(tmp_path: Path):
    file = write(
        tmp_path / "q.jsonl",
        {"prompt": "p", "expected": "a", "max_tokens": 9},
        {"prompt": "p", "regex": "a"},
        {"prompt": "p", "expected": "b"},
    )
    found = read_questions(file, "q")
    assert found.scorer == "exact, regex"
    assert [question.max_tokens for question in found.questions] == [9, None, None]


def test_names_of_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert parse_eval("a/sort.jsonl") == Evaluation("sort", Path("a/sort.jsonl"))
    assert parse_eval("digits=a/sort.jsonl") == Evaluation("digits", Path("a/sort.jsonl"))
    assert parse_eval("x=a=b.jsonl") == Evaluation("x", Path("a=b.jsonl"))
    Path("a=b.jsonl").touch()
    assert parse_eval("a=b.jsonl") == Evaluation("a=b", Path("a=b.jsonl"))
    assert parse_eval("x=a=b.jsonl") == Evaluation("x", Path("a=b.jsonl"))
    assert len(parse_evals(["a/t.jsonl", "b=b/t.jsonl"])) == 2
    with pytest.raises(UsageError, match=r"a/t.jsonl and b/t.jsonl are both named t"):
        parse_evals(["a/t.jsonl", "b/t.jsonl"])
    for wrong in ("", "=x", "x=", " =x", "a\tb=x"):
        with pytest.raises(RemergeError, match="names no questions"):
            parse_eval(wrong)
