"""The prompts of a benchmark, in tokens: the user's own, or generic ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.engines.calibration import OWN
from remerge.errors import UsageError
from remerge.serving.bench.load import Tokens
from remerge.validation.prompts import read_prompts
from remerge.validation.rendering import Prompt, chat, has_template, token_ids

_GENERIC = (
    "The prompts were remerge's own generic ones: lengths and answers like yours give figures that "
    "hold for you (--prompts FILE, --max-tokens)."
)


@dataclass(frozen=True)
class Prompts:
    """Prompts in tokens, in the order in which they are asked."""

    tokens: tuple[Tokens, ...]
    source: str
    notes: tuple[str, ...]

    @property
    def lengths(self) -> tuple[int, int]:
        """The shortest and the longest, in tokens."""
        lengths = [len(tokens) for tokens in self.tokens]
        return min(lengths), max(lengths)


def take_prompts(
    file: Path | None, tokenizer: Any, longest: int | None, max_tokens: int
) -> Prompts:
    """Read and render; what leaves no room for ``max_tokens`` more in a context of ``longest``
    tokens (None: nothing says how many it holds) is cut.

    Raises `UsageError` where no room is left for a prompt, and as `read_prompts`.
    """
    room = None if longest is None else longest - context_of(0, max_tokens)
    if room is not None and room < 1:
        raise UsageError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: the model's context holds "
            f"{longest} tokens.",
            hint="Give fewer.",
        )
    found = tuple(_own(tokenizer)) if file is None else read_prompts(file, tokenizer)
    ids = [token_ids(prompt, tokenizer) for prompt in found]
    cut = [one[:room] for one in ids if one]
    if not cut:
        raise UsageError(f"--prompts {file} holds no prompt that has a token.")
    notes = [] if file is not None else [_GENERIC]
    shorter = sum(len(one) < len(whole) for one, whole in zip(cut, filter(None, ids), strict=True))
    if shorter:
        notes.append(
            f"Of {shorter} prompts only the beginning was asked: context and --max-tokens leave "
            "no more room."
        )
    return Prompts(tuple(cut), "built in" if file is None else file.name, tuple(notes))


def context_of(prompt: int, max_tokens: int) -> int:
    """The context that a prompt and its answer need; llama.cpp wants a token of room."""
    return prompt + max_tokens + 1


def _own(tokenizer: Any) -> Iterator[Prompt]:
    """What users ask in the samples that calibration has, without the answers."""
    for number, line in enumerate(OWN.read_text("utf-8").splitlines(), 1):
        messages: Sequence[Mapping[str, str]] = json.loads(line)["messages"]
        asked = [message for message in messages if message["role"] != "assistant"]
        if has_template(tokenizer):
            yield chat(asked, tokenizer, f"line {number} of {OWN.name}")
        else:
            yield Prompt("\n\n".join(message["content"] for message in asked))
