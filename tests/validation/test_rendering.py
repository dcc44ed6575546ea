"""Questions as text and tokens, by the example's tokenizer and by transformers' own rendering."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput
from remerge.validation.questions import Question
from remerge.validation.rendering import Prompt, answer_tokens, render, token_ids

BASE = Path(__file__).resolve().parents[2] / "examples" / "base"
TOKENIZER = open_tokenizer(BASE)
CHAT = ({"role": "system", "content": "s"}, {"role": "user", "content": "Sort: 21 "})


def without_template() -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = None
    return tokenizer


def test_messages():
    found = render(Question("q", "exact", messages=CHAT), TOKENIZER)
    assert found == Prompt(
        "<|begin|><|system|>s<|end|><|user|>Sort: 21<|end|><|assistant|>", special=False
    )
    expected = TOKENIZER.apply_chat_template(
        list(CHAT), add_generation_prompt=True, return_dict=False
    )
    assert list(token_ids(found, TOKENIZER)) == expected
    # That a prompt is to be taken as it stands says nothing of a chat.
    assert render(Question("q", "exact", messages=CHAT), TOKENIZER, as_chat=False) == found


def test_prompts():
    question = Question("q", "exact", "Sort: 21")
    assert render(question, TOKENIZER) == Prompt(
        "<|begin|><|user|>Sort: 21<|end|><|assistant|>", special=False
    )
    for found in (render(question, TOKENIZER, as_chat=False), render(question, without_template())):
        assert found == Prompt("Sort: 21")
        assert list(token_ids(found, TOKENIZER)) == TOKENIZER("Sort: 21")["input_ids"]
        assert token_ids(found, TOKENIZER)[0] == TOKENIZER.bos_token_id


def test_what_cannot_be_rendered():
    with pytest.raises(BadInput, match="q, line 2 has messages, but the tokenizer has no chat"):
        render(Question("q, line 2", "exact", messages=CHAT), without_template())
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(BadInput, match=r"q: the chat template refuses .*: System role not"):
        render(Question("q", "exact", messages=CHAT), tokenizer)
    # transformers' sandbox, not ours: a template does not reach Python's own objects.
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BadInput, match="refuses"):
        render(Question("q", "exact", messages=CHAT), tokenizer)


def test_a_template_changes_no_question():
    messages = ({"role": "user", "content": "x"},)
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% set _ = messages[0].update({'content': 'y'}) %}x"
    with pytest.raises(BadInput, match="refuses"):
        render(Question("q", "exact", messages=messages), tokenizer)
    assert messages == ({"role": "user", "content": "x"},)


def test_how_long_an_answer_may_be():
    def limit(scorer: str, asked: int | None = None, **more: Any) -> int:
        return answer_tokens(Question("q", scorer, "p", **more), TOKENIZER, asked)

    longest = len(TOKENIZER("048999", add_special_tokens=False)["input_ids"])
    assert limit("exact", expected=("0", " 048999\n")) == longest + 4
    assert limit("exact", 50, expected=("0",)) == 50
    assert limit("exact", 50, expected=("0",), max_tokens=7) == 7
    assert limit("contains", expected=("0",)) == limit("regex") == limit("m:f") == 128
    assert limit("contains", 9) == 9
    assert limit("choice", 9) == limit("choice_norm", max_tokens=9) == 0
