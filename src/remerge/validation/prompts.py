"""The prompts of a check: from a file, or the built-in texts; cut to what is to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.engines.tokenisation import TEXTS
from remerge.errors import BadInput, UsageError
from remerge.sources.documents import as_list
from remerge.validation.lines import object_of, read_lines
from remerge.validation.rendering import Prompt, chat, token_ids

__all__ = ["Cut", "Prompt", "built_in", "cut", "read_prompts"]


def built_in() -> tuple[Prompt, ...]:
    """Several scripts, code, numbers, emoji and runs of white space; nothing that a model must
    know."""
    return tuple(Prompt(text) for text in TEXTS)


def read_prompts(path: Path, tokenizer: Any) -> tuple[Prompt, ...]:
    """A file of prompts: JSON lines with ``prompt``, ``text`` or ``messages``, else a text a line.

    ``messages`` are rendered by the tokenizer's chat template, in transformers' sandbox; only this
    asks for the template. Raises `BadInput` naming the line.
    """
    read = read_lines(path, "--prompts")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        found = [Prompt(line) for _, line in read.lines]
    else:
        found = [_prompt(read.where(number), line, tokenizer) for number, line in read.lines]
    if not found:
        raise UsageError(f"--prompts {path} holds no prompt.")
    return tuple(found)


def _prompt(where: str, line: str, tokenizer: Any) -> Prompt:
    document = object_of(where, line)
    for key in ("prompt", "text"):
        value = document.get(key)
        if isinstance(value, str) and value:
            return Prompt(value)
    messages = as_list(document.get("messages"))
    if not messages:
        raise BadInput(f"{where} has neither prompt, text nor messages.")
    return chat(messages, tokenizer, where)


@dataclass(frozen=True)
class Cut:
    """Prompts as token ids, and what was left out of them."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...]


def cut(prompts: Sequence[Prompt], tokenizer: Any, count: int, length: int) -> Cut:
    """The first ``count`` prompts, at most ``length`` tokens of each.

    Raises `BadInput` where not one has two tokens, of which the second could be predicted.
    """
    encoded = [token_ids(prompt, tokenizer) for prompt in prompts]
    usable = [ids for ids in encoded if len(ids) > 1]
    if not usable:
        raise BadInput("No prompt has two tokens: there is nothing to predict.")
    notes: list[str] = []
    if len(usable) > count:
        notes.append(f"The first {count} of {len(usable)} prompts were scored.")
    long = sum(len(ids) > length for ids in usable[:count])
    if long:
        notes.append(f"Of {long} prompts the first {length} tokens were scored.")
    # What is rendered holds its special tokens; engines would put theirs before it again.
    texts = tuple(dict.fromkeys(prompt.text for prompt in prompts[:count] if prompt.special))
    return Cut(tuple(ids[:length] for ids in usable[:count]), texts, tuple(notes))
