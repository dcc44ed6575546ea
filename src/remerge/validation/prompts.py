"""The prompts of a check: from a file, or the built-in texts; cut to what is to be scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from remerge.engines.tokenisation import TEXTS
from remerge.errors import BadInput, UsageError
from remerge.sources.documents import as_list, as_object

_MAX_FILE = 10_000_000


@dataclass(frozen=True)
class Prompt:
    """A text; ``special`` says whether the tokenizer puts its special tokens around it, which the
    text of a rendered chat has already."""

    text: str
    special: bool = True


def built_in() -> tuple[Prompt, ...]:
    """Several scripts, code, numbers, emoji and runs of white space; nothing that a model must
    know."""
    return tuple(Prompt(text) for text in TEXTS)


def read_prompts(path: Path, tokenizer: Any) -> tuple[Prompt, ...]:
    """A file of prompts: JSON lines with ``prompt``, ``text`` or ``messages``, else a text a line.

    ``messages`` are rendered by the tokenizer's chat template, in transformers' sandbox; only this
    asks for the template. Raises `BadInput` naming the line.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"--prompts {path} has more than {_MAX_FILE:,} bytes.")
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--prompts {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"--prompts {path} is no UTF-8 text.") from error
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        found = [Prompt(line) for line in lines if line.strip()]
    else:
        found = [
            _prompt(f"{path}, line {number}", line, tokenizer)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    if not found:
        raise UsageError(f"--prompts {path} holds no prompt.")
    return tuple(found)


def _prompt(where: str, line: str, tokenizer: Any) -> Prompt:
    try:
        document = as_object(json.loads(line))
    except ValueError as error:
        raise BadInput(f"{where} is no JSON.") from error
    for key in ("prompt", "text"):
        value = (document or {}).get(key)
        if isinstance(value, str) and value:
            return Prompt(value)
    messages = as_list((document or {}).get("messages"))
    if not messages:
        raise BadInput(f"{where} has neither prompt, text nor messages.")
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(f"{where} has messages, but the tokenizer has no chat template.")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise whatever it likes
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{where}: the chat template refuses these messages: {said}") from error
    return Prompt(cast("str", text), special=False)


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
    encoded = [
        tuple(tokenizer(prompt.text, add_special_tokens=prompt.special)["input_ids"])
        for prompt in prompts
    ]
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
