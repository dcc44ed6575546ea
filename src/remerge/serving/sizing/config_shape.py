"""The shape of a model from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.errors import Unsupported
from remerge.serving.sizing.fields import Fields
from remerge.serving.sizing.shape import Attention, Layer, Shape, State, check_depth
from remerge.serving.sizing.states import state_of

_WINDOWED = ("sliding_attention", "hybrid_sliding", "local_attention", "local", "sliding", "swa")
_CHUNKED = ("chunked_attention",)
_RECURRENT = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear", "m")
_BOTH = ("hybrid", "hybrid_sliding")
_NOTHING = ("moe", "mlp", "dummy", "e")
# Model types whose layers all recur, where no list says so.
_ALL_RECUR = ("mamba", "mamba2", "falcon_mamba", "xlstm", "rwkv", "rwkv7")
_ALL_BOTH = ("falcon_h1",)
# Scalings of rotary positions whose `max_position_embeddings` is already the scaled one: as vLLM's
# `_get_and_verify_max_len` takes it (vllm/config/model.py).
_SCALED_ALREADY = (
    "default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"
)  # fmt: skip
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip


def shape_of(config: Mapping[str, Any], filled: object = None) -> Shape:
    """The shape that a configuration tells; ``filled`` is the text model's configuration with its
    class's defaults, None for a type that transformers does not know.

    Raises `Unsupported` for a model that is no decoder alone, or that does not say enough.
    """
    text = _text_of(config)
    fields = Fields(text, filled)
    name = str(text.get("model_type") or config.get("model_type") or "unknown")
    encodes = config.get("is_encoder_decoder") or getattr(filled, "is_encoder_decoder", False)
    if encodes or text.get("is_encoder_decoder"):
        raise Unsupported(
            f"A {name} model has an encoder, and is not sized.",
            why="Engines keep keys and values of its input as well, each in its own way.",
            hint="Serve it with the engine's own settings.",
        )
    count = fields.number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = fields.number("hidden_size", "n_embd", "d_model", "dim", "model_dim")
    vocabulary = fields.number("vocab_size", "padded_vocab_size")
    if count is None or hidden is None or vocabulary is None:
        missing = {"layers": count, "hidden size": hidden, "vocabulary": vocabulary}
        raise Unsupported(
            f"The configuration of this {name} model does not say its "
            f"{', '.join(what for what, found in missing.items() if found is None)}.",
            hint="Serve it with the engine's own settings.",
        )
    check_depth(name, count)
    notes: list[str] = []
    if filled is None:
        notes.append(
            f"{name} is no model type that transformers knows here: what its configuration leaves "
            f"out is taken at its largest."
        )
    layers = _layers(fields, name, count, hidden, notes)
    if any(config.get(part) for part in ("vision_config", "audio_config")):
        notes.append("What it takes to read pictures or sound is not counted: leave room for it.")
    heads = fields.number("num_attention_heads", "n_head", "n_heads") or 1
    width = fields.number("head_dim", "attention_head_dim") or hidden // heads
    return Shape(
        architecture=name,
        layers=layers,
        hidden=hidden,
        query=max(heads * width, *(a.elements for a in _attentions(layers)), 1),
        feed_forward=_feed_forward(fields, hidden),
        vocabulary=vocabulary,
        max_context=_max_context(fields, name),
        dtype=_dtype(config, text),
        notes=tuple(notes),
    )


def _text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that tells of the language model."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = config.get(name)
        if isinstance(inner, dict):
            return _text_of(inner)  # pyright: ignore[reportUnknownArgumentType]
    return config


def _attentions(layers: tuple[Layer, ...]) -> list[Attention]:
    return [layer.attention for layer in layers if layer.attention is not None]


def _layers(
    fields: Fields, name: str, count: int, hidden: int, notes: list[str]
) -> tuple[Layer, ...]:
    types = _types(fields, name, count, notes)
    own = count - (fields.number("num_kv_shared_layers") or 0)
    modes = fields.texts("kv_sharing_modes")
    blocks = fields.get("block_configs")
    found: list[Layer] = []
    for number, kind in enumerate(types):
        shares = number >= own if modes is None else modes[number] == "reuse"
        if kind in _NOTHING or shares or _no_attention(blocks, number):
            found.append(Layer())
            continue
        state = _state(fields, kind, hidden, notes) if kind in (*_RECURRENT, *_BOTH) else None
        keeps = kind not in _RECURRENT
        found.append(Layer(_attention(fields, number, kind, hidden) if keeps else None, state))
    return tuple(found)


def _types(fields: Fields, name: str, count: int, notes: list[str]) -> list[str]:
    """The type of each layer."""
    stated = fields.texts("layer_types", "layers_block_type", "block_types")
    if stated is not None and len(stated) >= count:
        return stated[:count]
    if stated:
        return [stated[number % len(stated)] for number in range(count)]
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == count:
        words = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}
        return [words.get(letter, "full_attention") for letter in pattern]
    if name in _ALL_RECUR:
        return ["mamba"] * count
    if name in _ALL_BOTH:
        return ["hybrid"] * count
    if fields.number("sliding_window") and fields.get("use_sliding_window") is not False:
        every = fields.get("sliding_window_pattern")
        if type(every) is int and every > 0:
            whole = every - 1
            return [
                "full_attention" if n % every == whole else "sliding_attention"
                for n in range(count)
            ]
        if fields.get("max_window_layers") is None:
            return ["sliding_attention"] * count
        notes.append("Which layers look at a window is not said: all are counted in full.")
    if fields.number("attention_chunk_size"):
        notes.append("Which layers look at a chunk is not said: all are counted in full.")
    return ["full_attention"] * count


def _no_attention(blocks: Any, number: int) -> bool:
    """Whether a layer of a pruned model was left without attention."""
    try:
        attention = blocks[number]["attention"]
        return bool(attention.get("no_op") or attention.get("replace_with_linear"))
    except (TypeError, KeyError, IndexError, AttributeError):
        return False


def _state(fields: Fields, kind: str, hidden: int, notes: list[str]) -> State:
    found = state_of(fields, kind)
    if found is not None:
        return found
    # No model in use keeps more than a square of each head's width, of heads of 256.
    note = "The state of its recurrent layers is not known: counted as 512 times the hidden size."
    if note not in notes:
        notes.append(note)
    return State(8 * hidden, 512 * hidden)


def _attention(fields: Fields, number: int, kind: str, hidden: int) -> Attention:
    windowed = kind in _WINDOWED
    # Some types have other heads where they look at a window, or where they look at all.
    swa = ("swa_",) if windowed else ("global_",)
    heads = fields.at(number, "num_attention_heads", "n_head", "n_heads", "num_query_heads") or 1
    grouped = fields.at(
        number,
        *(f"{prefix}num_key_value_heads" for prefix in swa if windowed),
        *(("num_global_key_value_heads",) if not windowed else ()),
        "num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads", "multi_query_group_num",
        "num_attention_groups",
    )  # fmt: skip
    if _multi_query(fields):
        grouped = 1
    elif grouped is None:
        grouped = _in_group(fields, number, heads)
    width = fields.number(
        *(f"{prefix}head_dim" for prefix in swa),
        "head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels",
    )  # fmt: skip
    width = width or hidden // heads
    value = fields.number(*(f"{prefix}v_head_dim" for prefix in swa), "v_head_dim") or width
    key, latent = width, None
    rank = fields.number("kv_lora_rank")
    if rank is not None:
        rope = fields.number("qk_rope_head_dim") or 0
        key = (fields.number("qk_nope_head_dim") or 0) + rope or width
        grouped, latent = heads, rank + rope
    window = fields.number("sliding_window", "attention_window_size", "local_window_size")
    if kind in _CHUNKED:
        window = fields.number("attention_chunk_size")
    looks_back = windowed or kind in _CHUNKED or "attention_window_size" in fields.raw
    return Attention(
        grouped,
        key,
        value,
        window if looks_back else None,
        latent,
        index=fields.number("index_head_dim") or 0,
    )


def _multi_query(fields: Fields) -> bool:
    """One head of keys and values, as old configurations say it (Falcon, GPTBigCode, MPT)."""
    if fields.get("new_decoder_architecture"):
        return False
    return fields.get("multi_query") is True


def _in_group(fields: Fields, number: int, heads: int) -> int:
    """Heads of keys and values of a pruned model's layer, else as many as of queries."""
    try:
        return heads // int(fields.get("block_configs")[number]["attention"]["n_heads_in_group"])
    except (TypeError, KeyError, IndexError, ValueError, ZeroDivisionError):
        return heads


def _feed_forward(fields: Fields, hidden: int) -> int:
    dense = fields.number("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
    expert = fields.number("moe_intermediate_size", "expert_ffn_hidden_size") or dense
    chosen = fields.number("num_experts_per_tok", "moe_topk", "num_experts_per_token", "top_k")
    mixed = fields.number("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    used = (expert or 0) * (chosen or 0) if mixed else 0
    shared = fields.number("shared_expert_intermediate_size", "n_shared_experts") or 0
    shared = shared * (expert or 0) if shared < 64 else shared
    return max(dense or 4 * hidden, used + shared if mixed else 0)


def _max_context(fields: Fields, name: str) -> int | None:
    found = fields.number(*_LENGTHS)
    if found is None:
        return None
    scaling = fields.get("rope_scaling", "rope_parameters")
    if isinstance(scaling, dict) and "gemma3" not in name:
        rope = Fields(scaling)  # pyright: ignore[reportUnknownArgumentType]
        kind, factor = rope.get("rope_type", "type") or "default", rope.get("factor")
        if kind not in _SCALED_ALREADY and isinstance(factor, int | float) and factor > 1:
            return int(found * factor)
        if kind == "longrope":
            original = fields.number("original_max_position_embeddings")
            original = original or rope.number("original_max_position_embeddings")
            # What vLLM takes unless asked for more: above it answers to short prompts get worse.
            return min(found, original or found)
    return found


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    for stated in (text, config):
        for name in ("dtype", "torch_dtype"):
            found = stated.get(name)
            if isinstance(found, str):
                return found.removeprefix("torch.")
    return None
