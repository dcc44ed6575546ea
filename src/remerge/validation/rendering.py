"""What is asked, as the text and the tokens that a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.errors import BadInput
from remerge.validation.questions import Question

# Tokens of an answer beyond the longest that is expected: one that runs on is seen to be wrong.
_SPARE = 4
_ANSWER = 128


@dataclass(frozen=True)
class Prompt:
    """A text; ``special`` says whether the tokenizer puts its special tokens around it, which the
    text of a rendered chat has already."""

    text: str
    special: bool = True


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer knows how a chat is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat(messages: Sequence[Any], tokenizer: Any, where: str) -> Prompt:
    """A chat by the tokenizer's template, which transformers renders in its sandbox, up to where
    the assistant answers. Raises `BadInput` naming the line."""
    if not has_template(tokenizer):
        raise BadInput(
            f"{where} has messages, but the tokenizer has no chat template.",
            hint='Give the text as "prompt" instead.',
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise whatever it likes
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{where}: the chat template refuses these messages: {said}") from error
    return Prompt(cast("str", text), special=False)


def render(question: Question, tokenizer: Any, as_chat: bool = True) -> Prompt:
    """A question as text: its messages by the chat template, its prompt as one message of a user
    where there is a template and ``as_chat`` says so, else as it stands."""
    if question.prompt is None:
        return chat(question.messages, tokenizer, question.where)
    if as_chat and has_template(tokenizer):
        return chat([{"role": "user", "content": question.prompt}], tokenizer, question.where)
    return Prompt(question.prompt)


def token_ids(prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
    """A text's ids, with special tokens where it has not its own."""
    return tuple(tokenizer(prompt.text, add_special_tokens=prompt.special)["input_ids"])


def answer_tokens(question: Question, tokenizer: Any, asked: int | None = None) -> int:
    """The most tokens of an answer: the line's own limit, else what was ``asked`` for, else a few
    more than the longest text that is expected to the letter, or 128; 0 where choices are
    weighed."""
    if question.of_choices:
        return 0
    if question.max_tokens is not None or asked is not None:
        return question.max_tokens or asked or _ANSWER
    if question.scorer != "exact":
        return _ANSWER
    expected = (text.strip() for text in question.expected)
    return _SPARE + max(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in expected
    )
