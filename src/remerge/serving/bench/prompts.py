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
    file: Path | None, tokenizer: Any, config: Mapping[str, Any], max_tokens: int
) -> Prompts:
    """Read and render; what is longer than the model's context less ``max_tokens`` is cut.

    Raises `UsageError` where no room is left for a prompt, and as `read_prompts`.
    """
    longest = _longest(config)
    if longest is not None and max_tokens >= longest:
        raise UsageError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: the model's context holds "
            f"{longest} tokens.",
            hint="Give fewer.",
        )
    found = tuple(_own(tokenizer)) if file is None else read_prompts(file, tokenizer)
    ids = [token_ids(prompt, tokenizer) for prompt in found]
    cut = [one if longest is None else one[: longest - max_tokens] for one in ids if one]
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


def _own(tokenizer: Any) -> Iterator[Prompt]:
    """What users ask in the samples that calibration has, without the answers."""
    for number, line in enumerate(OWN.read_text("utf-8").splitlines(), 1):
        messages: Sequence[Mapping[str, str]] = json.loads(line)["messages"]
        asked = [message for message in messages if message["role"] != "assistant"]
        if has_template(tokenizer):
            yield chat(asked, tokenizer, f"line {number} of {OWN.name}")
        else:
            yield Prompt("\n\n".join(message["content"] for message in asked))


def _longest(config: Mapping[str, Any]) -> int | None:
    text: Mapping[str, Any] = config.get("text_config") or config
    found = text.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None
