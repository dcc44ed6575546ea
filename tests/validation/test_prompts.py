"""Prompts from files, and what of them is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, UsageError
from remerge.validation.prompts import Prompt, built_in, cut, read_prompts

BASE = Path(__file__).resolve().parents[2] / "examples" / "base"


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return open_tokenizer(BASE)


def test_text_files_are_a_prompt_a_line(tmp_path: Path, tokenizer: object):
    (tmp_path / "a.txt").write_text('first\n\n  {"prompt": "x"}\n', "utf-8")
    found = read_prompts(tmp_path / "a.txt", tokenizer)
    assert found == (Prompt("first"), Prompt('  {"prompt": "x"}'))


def test_json_lines(tmp_path: Path, tokenizer: object):
    messages = [{"role": "user", "content": "Sort the digits: 21"}]
    lines = [{"prompt": "one", "expected": "x"}, {"text": "two"}, {"messages": messages}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second, third = read_prompts(tmp_path / "a.jsonl", tokenizer)
    assert (first, second) == (Prompt("one"), Prompt("two"))
    # A chat as transformers renders it has its special tokens in the text.
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)  # type: ignore[attr-defined]
    ids = expected["input_ids"] if not isinstance(expected, list) else expected
    (prompt,) = cut([third], tokenizer, 1, 1000).prompts
    assert list(prompt) == list(ids)
    assert not third.special


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1 is no JSON"),
        ('{"a": 1}', "neither prompt, text nor messages"),
        ('{"prompt": ""}', "neither prompt, text nor messages"),
        ("[1]", "neither prompt, text nor messages"),
        ('{"messages": [1]}', "the chat template refuses"),
        ("\n", "holds no prompt"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, tokenizer: object, content: str, said: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises((BadInput, UsageError), match=said):
        read_prompts(tmp_path / "a.jsonl", tokenizer)


def test_files_that_are_none(tmp_path: Path, tokenizer: object):
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt", tokenizer)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no UTF-8"):
        read_prompts(tmp_path / "a.txt", tokenizer)


def test_what_is_left_out_is_said(tokenizer: object):
    found = cut(built_in(), tokenizer, 3, 10)
    assert [len(prompt) for prompt in found.prompts] == [10, 10, 10]
    assert found.notes == (
        f"The first 3 of {len(built_in())} prompts were scored.",
        "Of 3 prompts the first 10 tokens were scored.",
    )
    assert cut(built_in()[:2], tokenizer, 8, 10_000).notes == ()
    with pytest.raises(BadInput, match="No prompt has two tokens"):
        cut([Prompt("", special=False)], tokenizer, 8, 10)
