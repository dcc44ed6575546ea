"""Run in llama.cpp's environment: how llama.cpp cuts texts with the vocabulary of a GGUF file.

The vocabulary alone is loaded, which takes no longer for a large model than for a small one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remerge.engines.calling import Report, answer
from remerge.engines.llama_library import open_library


@dataclass(frozen=True)
class GgufTokens:
    """The ids of every text, with what is put before and after it; whether that is a BOS or an EOS
    token; how many tokens the vocabulary has."""

    tokens: list[list[int]]
    adds_bos: bool
    adds_eos: bool
    vocabulary: int


def tokens(file: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text as llama.cpp's own tokenizer gives them, special ones included.

    Names of special tokens in a text are read as these. Raises `BadInput` for a file whose
    vocabulary llama.cpp does not load, `Unsupported` where its library is not the one known.
    """
    return tokenise(file, texts).tokens


def tokenise(file: Path, texts: Sequence[str]) -> GgufTokens:
    """As `tokens`, with what the vocabulary says of itself."""
    library = open_library()
    with library.model(file, vocab_only=True) as model:
        vocabulary = library.functions.llama_model_get_vocab(model)
        return GgufTokens(
            [library.tokens(model, text) for text in texts],
            bool(library.functions.llama_vocab_get_add_bos(vocabulary)),
            bool(library.functions.llama_vocab_get_add_eos(vocabulary)),
            int(library.functions.llama_vocab_n_tokens(vocabulary)),
        )


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """``{"file", "texts"}`` in, the fields of `GgufTokens` out."""
    return asdict(tokenise(Path(request["file"]), request["texts"]))


if __name__ == "__main__":
    answer(work)
