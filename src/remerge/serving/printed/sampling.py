"""How a model wants to be sampled, and where it stops, as its files say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object, read_json_object


def sampling_of(model: Path) -> Mapping[str, object]:
    """generation_config.json of a checkpoint, or of the directory that a GGUF file lies in; empty
    where there is none that can be read."""
    folder = model if model.is_dir() else model.parent
    try:
        return read_json_object(folder / "generation_config.json")
    except BadInput:
        return {}


def stops_of(model: Path) -> tuple[str, ...]:
    """The texts of the tokens at which a checkpoint's generation ends; none of a GGUF file, whose
    header tells them to the engine."""
    if not model.is_dir():
        return ()
    ends = sampling_of(model).get("eos_token_id")
    wanted = {n for n in (as_list(ends) or [ends]) if type(n) is int}
    try:
        tokens = as_list(read_json_object(model / "tokenizer.json").get("added_tokens")) or []
    except BadInput:
        return ()
    found: list[str] = []
    for token in map(as_object, tokens):
        text = token.get("content") if token is not None and token.get("id") in wanted else None
        if isinstance(text, str) and text:
            found.append(text)
    return tuple(found)


def modelfile_beside(model: Path) -> tuple[str, ...]:
    """The lines of the Modelfile that was written with a GGUF file, but for its FROM and context:
    it has the chat template in Ollama's language. None of a file that has no such Modelfile."""
    try:
        text = (model.parent / "Modelfile").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    first, *others = text.rstrip("\n").split("\n")
    if first != f"FROM ./{model.name}":
        return ()
    return tuple(line for line in others if not line.startswith("PARAMETER num_ctx "))
