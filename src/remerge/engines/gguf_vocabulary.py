"""Run in llama.cpp's environment: what a GGUF file says of text, checked before it is written.

The vocabulary is put into a file of its own, llama.cpp cuts texts with it, and the checkpoint's
tokenizer must cut them in the same way.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from remerge.engines.gguf_writing import header
from remerge.engines.tokenisation import (
    TEXTS,
    Difference,
    differences,
    of_composed,
    open_tokenizer,
)
from remerge.engines.tokenise_gguf import tokens
from remerge.errors import Unsupported
from remerge.outputs.gguf.ollama import Message, find_marks, modelfile

# What converters guess from files that may not say it: whether a BOS, and whether a space, is put
# before a text.
_SETTINGS: tuple[str, ...] = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix")


def check_tokens(writer: Any, directory: Path, *, allowed: bool) -> tuple[str, ...]:
    """Compare llama.cpp's tokens with those of the tokenizer in ``directory``, on texts of many
    kinds; gives notes. What the file says of BOS and of a space before a text is set right where
    that is all.

    Raises `Unsupported` at a difference that is not ``allowed``.
    """
    tokenizer = open_tokenizer(directory)
    expected = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    stated = {
        key: bool(writer.kv_data[0][key].value) for key in _SETTINGS if key in writer.kv_data[0]
    }
    found = _differences(writer, expected)
    serious = of_composed(found, TEXTS)
    if serious and (changed := _agreeing(writer, stated, expected)):
        return (f"Set as the checkpoint's tokenizer has it: {changed}.",)
    if not found:
        return ()
    if not serious:
        return (
            "The tokenizer composes Unicode characters (NFC), and llama.cpp takes text as it "
            "comes: letters with marks of their own are cut otherwise.",
        )
    what = f"llama.cpp cuts {len(found)} of {len(TEXTS)} test texts otherwise than the tokenizer"
    if allowed:
        return (f"{what}: {serious[0]}.",)
    raise Unsupported(
        f"{what}: {serious[0]}.",
        why="The model would read other tokens than it was trained on.",
        hint="Write a checkpoint instead, or accept it with --allow-token-differences.",
    )


def _differences(writer: Any, expected: Sequence[Sequence[int]]) -> list[Difference]:
    with tempfile.TemporaryDirectory(prefix="remerge-vocabulary-") as folder:
        file = Path(folder) / "vocabulary.gguf"
        file.write_bytes(header(writer, {}, {}))
        return differences(expected, tokens(file, TEXTS))


def _agreeing(
    writer: Any, stated: Mapping[str, bool], expected: Sequence[Sequence[int]]
) -> str | None:
    """Settings of the file with which llama.cpp cuts as the tokenizer does, in words; with None all
    are as they were."""
    for values in product((False, True), repeat=len(_SETTINGS)):
        settings = dict(zip(_SETTINGS, values, strict=True))
        _set(writer, settings)
        if not of_composed(_differences(writer, expected), TEXTS):
            return ", ".join(
                f"{key.rpartition('.')[2]} {str(value).lower()}"
                for key, value in settings.items()
                if stated.get(key) != value
            )
    for key in _SETTINGS:
        writer.kv_data[0].pop(key, None)
    _set(writer, stated)
    return None


def _set(writer: Any, settings: Mapping[str, bool]) -> None:
    for key, value in settings.items():
        writer.kv_data[0].pop(key, None)
        writer.add_bool(key, value)


def write_modelfile(target: Path, file: str, directory: Path) -> None:
    """Write Ollama's Modelfile for ``file``, from the tokenizer and configuration beside it."""
    tokenizer = open_tokenizer(directory)

    def render(messages: Sequence[Message], answers: bool) -> str | None:
        try:
            return tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answers,
            )
        except Exception:  # whatever a template raises: it takes no such conversation
            return None

    marks = None
    if tokenizer.chat_template:
        marks = find_marks(render, tokenizer.bos_token or "")
    generation = _document(directory / "generation_config.json")
    config = _document(directory / "config.json")
    context = config.get("max_position_embeddings")
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    numbers = ids if isinstance(ids, list) else [ids]
    stops = [tokenizer.convert_ids_to_tokens(i) for i in numbers if isinstance(i, int)]
    if marks is not None:
        special = [token for token in tokenizer.all_special_tokens if token in marks.assistant[1]]
        stops += special
    text = modelfile(
        file,
        marks,
        list(dict.fromkeys(stop for stop in stops if stop)),
        generation,
        context if isinstance(context, int) else None,
    )
    target.write_text(text)


def _document(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}
