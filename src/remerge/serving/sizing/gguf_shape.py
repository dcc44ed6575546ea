"""The shape of a model from the header of its GGUF file.

Widths of keys and values are those of the tensors themselves; metadata tell windows and states, as
llama.cpp reads them (``load_hparams`` of its ``src/models/*.cpp``, ``llama-hparams.cpp``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from remerge.errors import Unsupported
from remerge.serving.sizing.fields import Fields
from remerge.serving.sizing.shape import Attention, Layer, Shape, State, check_depth
from remerge.sources.gguf_header import GgufHeader, GgufTensor, LongArray

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
# Every nth layer looks at all, the last of each n unless `_FIRST`: `load_swa_pattern` of llama.cpp.
_EVERY = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6,
    "gemma3n": 5, "gpt-oss": 2, "llama4": 4, "olmo2": 4, "plamo3": 8, "smallthinker": 4,
}  # fmt: skip
_FIRST = ("smallthinker",)
# A window is in the metadata of these, and llama.cpp keeps keys and values in full all the same.
_IN_FULL = ("phi3", "qwen2", "qwen2moe", "mistral", "llama")
_ENCODERS = ("t5", "t5encoder", "bert", "nomic-bert", "jina-bert-v2", "modern-bert", "whisper")


def shape_of_gguf(header: GgufHeader) -> Shape:
    """The shape that a header tells; raises `Unsupported` for a model that is no decoder alone, or
    whose header does not say enough."""
    name = header.text("general.architecture") or "unknown"
    stated: dict[str, Any] = {
        key.removeprefix(f"{name}."): list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType]
        for key, value in header.metadata.items()
        if key.startswith(f"{name}.") and not isinstance(value, LongArray)
    }
    fields = Fields(stated)
    count, hidden = fields.number("block_count"), fields.number("embedding_length")
    if name in _ENCODERS:
        raise Unsupported(
            f"A {name} model has an encoder, and is not sized.",
            hint="Serve it with llama.cpp's own settings.",
        )
    if count is None or hidden is None:
        raise Unsupported(
            "This GGUF file does not say how many layers it has, and how wide.",
            why=f"{name}.block_count or {name}.embedding_length is missing.",
            hint="Is it a model? Adapters and projectors are served beside one.",
        )
    check_depth(name, count)
    blocks: dict[int, dict[str, GgufTensor]] = defaultdict(dict)
    for tensor, info in header.tensors.items():
        if match := _BLOCK.fullmatch(tensor):
            blocks[int(match[1])][match[2]] = info
    notes: list[str] = []
    own = count - (fields.number("attention.shared_kv_layers") or 0)
    layers = tuple(
        Layer(
            _attention(fields, name, number, blocks[number]) if number < own else None,
            _state(fields, blocks[number], hidden, notes),
        )
        for number in range(count)
    )
    vocabulary = _rows(header.tensors.get("token_embd.weight")) or fields.number("vocab_size") or 0
    heads = fields.number("attention.head_count") or 1
    width = fields.number("attention.key_length") or hidden // heads
    forward = fields.number("feed_forward_length") or 4 * hidden
    experts = fields.number("expert_feed_forward_length") or forward
    used = (fields.number("expert_used_count") or 0) + (fields.number("expert_shared_count") or 0)
    return Shape(
        architecture=name,
        layers=layers,
        hidden=hidden,
        query=heads * width,
        feed_forward=max(forward, experts * used),
        vocabulary=vocabulary,
        max_context=fields.number("context_length"),
        notes=tuple(notes),
    )


def _attention(
    fields: Fields, name: str, number: int, block: dict[str, GgufTensor]
) -> Attention | None:
    heads = fields.at(number, "attention.head_count") or 1
    hidden = fields.number("embedding_length") or 0
    key = fields.number("attention.key_length") or hidden // heads
    value = fields.number("attention.value_length") or key
    window = _window(fields, name, number)
    if "attn_kv_a_mqa" in block:
        latent = _rows(block["attn_kv_a_mqa"])
        if fields.number("attention.key_length_mla"):
            # Kept as one row; its values are a part of it.
            return Attention(1, latent, 0, window, latent)
        return Attention(heads, key, value, window)
    index = _rows(block.get("indexer.attn_k"))
    if "attn_k" in block:
        keys = _rows(block["attn_k"])
        return Attention(1, keys, _rows(block.get("attn_v")) or keys, window, index=index)
    if "attn_qkv" in block and "ssm_conv1d" not in block:
        grouped = fields.at(number, "attention.head_count_kv") or heads
        return Attention(grouped, key, value, window, index=index)
    return None


def _window(fields: Fields, name: str, number: int) -> int | None:
    """The window of a layer, where llama.cpp bounds its cache by it; what is not known to do so is
    counted in full."""
    window = fields.number("attention.sliding_window", "attention.chunk_size")
    if window is None or name in _IN_FULL:
        return None
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        items: list[object] = pattern  # pyright: ignore[reportUnknownVariableType]
        return window if number < len(items) and items[number] in (True, 1) else None
    every = pattern if type(pattern) is int else _EVERY.get(name)
    if not every:
        return None
    whole = 0 if name in _FIRST else every - 1
    return None if number % every == whole else window


def _state(
    fields: Fields, block: dict[str, GgufTensor], hidden: int, notes: list[str]
) -> State | None:
    if not any(name.startswith(("ssm_", "time_mix", "shortconv")) for name in block):
        return None
    # n_embd_r and n_embd_s of llama-hparams.cpp.
    if width := fields.number("wkv.head_size"):
        return State(2 * hidden, hidden * width)
    if kernel := fields.number("shortconv.l_cache"):
        return State(hidden * (kernel - 1), 0)
    inner, size = fields.number("ssm.inner_size"), fields.number("ssm.state_size")
    if width := fields.number("kda.head_dim"):
        heads = fields.number("attention.head_count") or 1
        return State(9 * heads * width, heads * width * width)
    if inner is None or size is None:
        notes.append("The state of its recurrent layers is not known: 512 times the hidden size.")
        return State(8 * hidden, 512 * hidden)
    groups = fields.number("ssm.group_count") or 0
    kernel = fields.number("ssm.conv_kernel") or 4
    return State((kernel - 1) * (inner + 2 * groups * size), size * inner)


def _rows(tensor: GgufTensor | None) -> int:
    return tensor.shape[0] if tensor is not None and tensor.shape else 0
