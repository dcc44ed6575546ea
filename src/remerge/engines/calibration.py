"""Run in engines' environments: the samples that a quantiser is calibrated on, as tokens."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remerge.engines.calibrated import CalibrationOptions
from remerge.errors import BadInput

OWN = Path(__file__).parent / "calibration.jsonl"
_GENERIC = (
    "Calibrated on remerge's own generic samples: prompts of the kind that the model will see give "
    "a better result (--calibration FILE)."
)
_LARGEST = 2**30


def notes_of(options: CalibrationOptions, found: Sequence[Sequence[int]]) -> list[str]:
    """What the user should know of the samples."""
    tokens = sum(map(len, found))
    said = [f"Calibrated on {len(found)} samples, {tokens:,} tokens."]
    return said if options.calibration is not None else [*said, _GENERIC]


def samples(
    options: CalibrationOptions, file: str | None, directory: Path, longest: int | None
) -> list[list[int]]:
    """The first samples of a file, cut to ``length`` tokens and to the model's own ``longest``.

    Raises `BadInput` for a file that holds none, or a line that is none.
    """
    from transformers import AutoTokenizer

    path = OWN if file is None else Path(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(
            f"transformers does not read the model's tokenizer: {str(error).splitlines()[0]}",
            why="Calibration needs one.",
        ) from error
    cut = min(options.length, longest or options.length)
    found: list[list[int]] = []
    for number, entry in _entries(path):
        tokens = _tokens(tokenizer, entry, f"line {number} of {path.name}", own=file is None)[:cut]
        if tokens:
            found.append(tokens)
        if len(found) == options.samples:
            break
    if not found:
        raise BadInput(
            f"{path} holds no sample to calibrate on.",
            hint='Write one a line: text, or JSON with "text", "prompt" or "messages".',
        )
    return found


def _entries(path: Path) -> Iterator[tuple[int, str | Mapping[str, Any]]]:
    """Lines that are not empty, with their numbers; of JSON lines the objects.

    A file is one of JSON lines if its first line is an object.
    """
    if path.stat().st_size > _LARGEST:
        raise BadInput(f"{path} is too large to be samples.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8.") from error
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    as_json = path.suffix in (".jsonl", ".json") or (
        bool(kept) and isinstance(_parsed(kept[0][1]), dict)
    )
    for number, line in kept:
        if not as_json:
            yield number, line
            continue
        entry = _parsed(line)
        if not isinstance(entry, dict):
            raise BadInput(f"Line {number} of {path} is no JSON object.", hint="Write one a line.")
        yield number, entry


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _tokens(tokenizer: Any, entry: str | Mapping[str, Any], where: str, *, own: bool) -> list[int]:
    """A sample in tokens: text as it is, a conversation or a prompt in the model's template."""
    if isinstance(entry, str):
        return tokenizer.encode(entry)
    text, prompt, messages = (entry.get(key) for key in ("text", "prompt", "messages"))
    if isinstance(text, str):
        return tokenizer.encode(text)
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
        if not _has_template(tokenizer):
            return tokenizer.encode(prompt)
    if not isinstance(messages, list) or not messages:
        raise BadInput(
            f"{where} has no sample.",
            hint='Give it "text", "prompt" or "messages".',
        )
    if own and not _has_template(tokenizer):
        return tokenizer.encode("\n\n".join(message["content"] for message in messages))
    return _rendered(tokenizer, messages, where)


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _rendered(tokenizer: Any, messages: Sequence[Any], where: str) -> list[int]:
    """A conversation by the tokenizer's template, which transformers renders in a sandbox."""
    if not _has_template(tokenizer):
        raise BadInput(
            f'{where} holds "messages", and the tokenizer has no chat template.',
            hint='Give the rendered conversation as "text".',
        )
    last = messages[-1]
    asks = isinstance(last, dict) and last.get("role") == "user"
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # a template may raise anything
        raise BadInput(f"The chat template refuses {where}: {error}") from error
    # The template says itself where the text begins.
    return tokenizer.encode(text, add_special_tokens=False)
