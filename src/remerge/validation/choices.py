"""Multiple choice by likelihood: the tokens of each choice after the question, and the likeliest.

As EleutherAI's lm-eval has it (`_encode_pair` of lm_eval/api/model.py, `acc` and `acc_bytes`):
question and choice are cut into tokens together, white space that ends the question goes with the
choice, and a plain question is parted from its choice by a space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from remerge.errors import BadInput
from remerge.validation.rendering import Prompt


@dataclass(frozen=True)
class ChoiceIds:
    """The ids that all choices share, and what follows for each: a choice's log-likelihood is the
    sum of its ids' log-probabilities after ``context``. Neither is ever empty."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """What a model reads, one for each choice."""
        return tuple((*self.context, *ids) for ids in self.continuations)


def choice_ids(prompt: Prompt, choices: Sequence[str], tokenizer: Any, where: str) -> ChoiceIds:
    """Token ids of a question with each of its choices.

    Where a choice merges with the question's last token into another, that token is weighed as
    well, for all choices: each then is weighed by the same text. Raises `BadInput` for a choice
    that leaves no token.
    """
    text = prompt.text.rstrip()
    space = prompt.text[len(text) :]
    parted = not prompt.special or space

    def ids(more: str) -> list[int]:
        return list(tokenizer(text + more, add_special_tokens=False)["input_ids"])

    alone = ids("")
    joined = [
        ids(space + ("" if parted or choice[:1].isspace() else " ") + choice) for choice in choices
    ]
    common = min((_common(alone, one) for one in joined), default=0)
    first = _first(text, alone, tokenizer) if prompt.special else []
    context = (*first, *alone[:common])
    continuations = tuple(tuple(one[common:]) for one in joined)
    if not context or not all(continuations):
        raise BadInput(f"{where}: a choice adds no token to the question, or there is none before.")
    return ChoiceIds(context, continuations)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _first(text: str, alone: Sequence[int], tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text; those after it would stand between
    question and choice."""
    whole = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(alone) + 1):
        if whole[start : start + len(alone)] == list(alone):
            return whole[:start]
    return []


def chosen(likelihoods: Sequence[float], choices: Sequence[str], *, by_bytes: bool = False) -> int:
    """The index of the likeliest choice, of equals the first; ``likelihoods`` are sums of
    log-probabilities in nats, with ``by_bytes`` each over the choice's length in UTF-8.

    Raises `BadInput` where one is not a number.
    """
    if any(value != value for value in likelihoods):
        raise BadInput("A model gives a choice no likelihood: its log-probability is not a number.")
    lengths = (len(choice.encode()) if by_bytes else 1 for choice in choices)
    weighed = [value / length for value, length in zip(likelihoods, lengths, strict=True)]
    return weighed.index(max(weighed))
