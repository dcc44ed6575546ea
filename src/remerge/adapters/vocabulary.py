"""A vocabulary that grew before training: every tensor that counts tokens must grow along, and the
configuration with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from remerge.adapters.edits import Context, Whole

_FIELDS = ("vocab_size", "n_vocab", "padded_vocab_size")
_OUTPUT_HEADS = frozenset({"lm_head", "embed_out", "output_projection"})
_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "shared", "word_embeddings"})


def vocabulary_size(config: Mapping[str, Any], rows: int) -> int | None:
    """``rows`` if some part of config.json gives it as a vocabulary's size, else None."""
    return rows if any(True for _ in _fields(config, rows)) else None


def counts_tokens(parameter: str) -> bool:
    """Whether the parameter belongs to an embedding or an output head, by its module's name."""
    return bool((_OUTPUT_HEADS | _EMBEDDINGS).intersection(parameter.split(".")[-2:-1]))


def is_output_head(parameter: str) -> bool:
    """Whether the parameter belongs to an output head, by its module's name."""
    return bool(_OUTPUT_HEADS.intersection(parameter.split(".")[-2:-1]))


def resized_config(context: Context, wholes: Mapping[str, Whole]) -> dict[str, object]:
    """Dotted config keys with their new vocabulary size, wherever the old one stands.

    Misfits: embeddings of different sizes, and an output head that did not grow along.
    """
    sizes: dict[int, int] = {}
    for whole in wholes.values():
        known = context.names.shape(whole.parameter)
        if known is None or known == whole.shape:
            continue
        old, new = known[0], whole.shape[0]
        if vocabulary_size(context.base.config, old) is None:
            continue
        if sizes.setdefault(old, new) != new:
            context.misfits.add(
                whole.parameter,
                f"has {new} tokens, another embedding of the adapter {sizes[old]}",
                "vocabulary",
            )
    for old, new in sizes.items():
        _check_heads(context, wholes, old, new)
    return {field: new for old, new in sizes.items() for field in _fields(context.base.config, old)}


def _check_heads(context: Context, wholes: Mapping[str, Whole], old: int, new: int) -> None:
    for tensor, facts in context.base.tensors.items():
        if not is_output_head(tensor) or not facts.shape or facts.shape[0] != old:
            continue
        grown = {
            region.tensor
            for name, whole in wholes.items()
            if whole.shape[0] == new
            for region in context.names.regions(name)
        }
        if tensor not in grown:
            context.misfits.add(
                tensor, f"has {old} tokens, the adapter's embedding {new}", "vocabulary"
            )


def _fields(config: Mapping[str, Any], size: int, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if name in _FIELDS and value == size:
            yield prefix + name
        elif isinstance(value, dict):
            yield from _fields(cast("dict[str, Any]", value), size, f"{prefix}{name}.")
