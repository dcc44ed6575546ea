"""Formats side by side: what is measured is what `check` measures, and the task's answers count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import remerge
from remerge.cli import group
from remerge.engines.scoring import Answered
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.validation.formats import read_task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, SORT = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"


class Words:
    """A tokenizer of words."""

    chat_template = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join("x" * number for number in ids) + "\n"


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_the_share_of_right_answers(tmp_path: Path):
    lines = ({"prompt": "a", "expected": right} for right in ("x xx", ["y", "xxx"], "x"))
    task = read_task(write(tmp_path / "t.jsonl", *lines), Words(), 9)
    answers = [Answered(answer=ids) for ids in ((1, 2), (3,), (2,))]
    assert task.right(answers, Words()) == pytest.approx(2 / 3)
    assert {(item.kind, item.tokens) for item in task.items(5).values()} == {("answer", 6)}
    assert list(task.items(5)) == [5, 6, 7]


def test_a_task_is_read(tmp_path: Path):
    file = write(
        tmp_path / "t.jsonl",
        {"prompt": "one two", "expected": " three "},
        {"prompt": "a", "expected": "b c"},
        {"prompt": "left", "expected": "out"},
    )
    task = read_task(file, Words(), 2)
    assert task.prompts == ((3, 3), (1,))
    assert [question.wanted for question in task.asked.questions] == [" three ", "b c"]
    assert task.tokens == 2 + 4


def test_a_chat_template_is_used(tmp_path: Path):
    file = write(tmp_path / "t.jsonl", {"prompt": "Sort the digits: 21", "expected": "12"})
    tokenizer = open_tokenizer(BASE)
    text = tokenizer.decode(read_task(file, tokenizer, 1).prompts[0])
    assert text == "<|begin|><|user|>Sort the digits: 21<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no question"),
        ("no json", "line 1 is no JSON"),
        ('{"prompt": "a"}', "line 1 has no prompt with an expected answer"),
        ('{"prompt": 1, "expected": "b"}', "line 1 has no prompt"),
        ("[1]", "line 1 has no prompt"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 0}', "line 1 has choices"),
    ],
)
def test_what_is_no_task(tmp_path: Path, content: str, said: str):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(RemergeError, match=said):
        read_task(tmp_path / "t.jsonl", Words(), 9)
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(tmp_path / "none.jsonl", Words(), 9)


@pytest.mark.slow
def test_side_by_side(tmp_path: Path):
    """Two checkpoints; a form that cannot be made keeps its row."""
    keep = tmp_path / "kept"
    table = remerge.formats(
        BASE,
        SORT,
        ("safetensors", "fp8", "adapter"),
        evaluation=EXAMPLES / "eval" / "sort.jsonl",
        questions=4,
        max_prompts=3,
        keep=keep,
    )
    plain, fp8, adapter = table.rows
    assert table.score == plain.score == fp8.score == 1.0
    assert plain.comparison is not None and fp8.comparison is not None
    assert plain.comparison.kl_mean < 1e-4 < fp8.comparison.kl_mean < 0.05
    assert 16 <= plain.bits_per_weight < 16.1 and 8 < fp8.bits_per_weight < 10
    assert plain.nbytes == sum(f.stat().st_size for f in keep.glob("safetensors/*.safetensors"))
    assert adapter.failure is not None and "adapter" in adapter.failure
    assert (adapter.nbytes, adapter.comparison, adapter.score) == (0, None, None)
    assert sorted(place.name for place in keep.iterdir()) == ["fp8", "safetensors"]
    assert remerge.verify(keep / "fp8").files > 0
    with pytest.raises(UsageError, match="not empty"):
        remerge.formats(BASE, SORT, ("safetensors",), keep=keep)


def test_nothing_could_be_made(tmp_path: Path):
    with pytest.raises((UsageError, BadInput)):
        remerge.formats(BASE, SORT, ("nothing",))


def test_the_command(tmp_path: Path):
    words = ["formats", BASE, SORT, "--to", "safetensors", "--max-prompts", "2", "--json", "-q"]
    done = CliRunner().invoke(group, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["rows"][0]["form"] == "safetensors"
    assert document["rows"][0]["comparison"]["top1"] > 0.9
    assert document["score"] is None
