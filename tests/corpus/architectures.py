"""Tiny, randomly initialised models: one entry an architecture, all a few hundred kilobytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Arch:
    """A transformers class and the configuration that keeps it tiny."""

    name: str
    cls: str
    config: Config
    #: How to feed it in a forward-pass comparison: "ids", "seq2seq", "pixels" or None.
    inputs: str | None = "ids"


VOCAB = 96
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SMALL_TEXT: dict[str, Any] = {**LLAMA_LIKE, "model_type": "llama"}

ARCHS: dict[str, Arch] = {}


def arch(name: str, cls: str, config: Config, inputs: str | None = "ids") -> None:
    if name in ARCHS:
        raise ValueError(f"architecture {name} is listed twice")
    ARCHS[name] = Arch(name, cls, config, inputs)


def like_llama(name: str, cls: str, **over: Any) -> None:
    config = {**LLAMA_LIKE, **over}
    arch(name, cls, {k: v for k, v in config.items() if v is not None})
