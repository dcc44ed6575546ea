"""States of recurrent layers, by the fields that their configurations have.

Widths as in vLLM's ``mamba_utils.MambaStateShapeCalculator`` and transformers' own caches.
"""

from __future__ import annotations

from remerge.serving.sizing.fields import Fields
from remerge.serving.sizing.shape import State


def state_of(fields: Fields, layer_type: str) -> State | None:
    """The state that a recurrent layer keeps; None where the configuration does not tell."""
    if layer_type == "conv":
        return _short_convolution(fields)
    for known in (_delta_net, _kimi, _mamba_2, _mamba_1, _recurrent_gemma, _lightning):
        found = known(fields)
        if found is not None:
            return found
    return None


def _delta_net(fields: Fields) -> State | None:
    keys, values = fields.number("linear_num_key_heads"), fields.number("linear_num_value_heads")
    key, value = fields.number("linear_key_head_dim"), fields.number("linear_value_head_dim")
    if keys is None or values is None or key is None or value is None:
        return None
    kernel = fields.number("linear_conv_kernel_dim") or 4
    return State((2 * key * keys + value * values) * kernel, values * value * key)


def _kimi(fields: Fields) -> State | None:
    stated = fields.get("linear_attn_config")
    if not isinstance(stated, dict):
        return None
    own = Fields(stated)  # pyright: ignore[reportUnknownArgumentType]
    heads, width = own.number("num_heads"), own.number("head_dim")
    if heads is None or width is None:
        return None
    kernel = own.number("short_conv_kernel_size") or 4
    return State(3 * heads * width * kernel, heads * width * width)


def _mamba_2(fields: Fields) -> State | None:
    heads = fields.number("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
    hidden = fields.number("hidden_size", "d_model")
    size = fields.number("mamba_d_state", "ssm_state_size", "state_size")
    if heads is None and fields.get("model_type") == "mamba2":
        heads = fields.number("num_heads")
    if heads is None or hidden is None or size is None:
        return None
    inner = fields.number("mamba_d_ssm")
    width = fields.number("mamba_d_head", "mamba_head_dim", "head_dim")
    expand = fields.get("mamba_expand", "expand") or 2
    inner = inner or (heads * width if width else int(expand * hidden))
    if fields.number("mamba_dt_rank") and fields.number("n_mamba_heads"):
        inner = max(inner, int(expand * hidden))
    groups = fields.number("mamba_n_groups", "mamba_ngroups", "n_groups") or 1
    kernel = fields.number("mamba_d_conv", "conv_kernel", "mamba_conv_kernel") or 4
    return State((inner + 2 * groups * size) * kernel, inner * size)


def _mamba_1(fields: Fields) -> State | None:
    size = fields.number("mamba_d_state", "state_size", "ssm_state_size")
    hidden = fields.number("hidden_size", "d_model")
    if size is None or hidden is None:
        return None
    inner = fields.number("intermediate_size") if fields.get("model_type") == "mamba" else None
    inner = max(inner or 0, int((fields.get("mamba_expand", "expand") or 2) * hidden))
    kernel = fields.number("mamba_d_conv", "conv_kernel") or 4
    return State(inner * kernel, inner * size)


def _recurrent_gemma(fields: Fields) -> State | None:
    width = fields.number("lru_width")
    if width is None:
        return None
    return State(width * (fields.number("conv1d_width") or 4), width)


def _lightning(fields: Fields) -> State | None:
    """A square of the head's width for each head, as MiniMax's linear attention keeps."""
    if "minimax" not in str(fields.get("model_type")).lower():
        return None
    heads, hidden = fields.number("num_attention_heads"), fields.number("hidden_size")
    if heads is None or hidden is None:
        return None
    width = fields.number("head_dim") or hidden // heads
    return State(0, heads * width * width)


def _short_convolution(fields: Fields) -> State | None:
    hidden, kernel = fields.number("hidden_size"), fields.number("conv_L_cache")
    return None if hidden is None or kernel is None else State(hidden * kernel, 0)
