"""LoRA on torch's MultiheadAttention (PEFT lora/layer.py, MultiheadAttention).

The layer's own factors change ``in_proj_weight``; its output projection is wrapped on the side,
with the attention's rank and alpha. PEFT merges the output projection's change twice, in the
forward pass of training as well, so twice is what the adapter was trained with.
"""

from __future__ import annotations

from remerge.adapters.deltas import LowRank
from remerge.adapters.edits import Edit
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.linear import linear_edits
from remerge.adapters.lora.products import check_shape, linear_product
from remerge.adapters.lora.residual import refuse_residual
from remerge.errors import Unsupported

KIND = "MultiheadAttention"
_OUT = "out_proj"
_TWICE = 2.0


def attention_edits(context: Context, parts: Parts) -> list[Edit]:
    """The edit of ``in_proj_weight (3 * dim, dim)``."""
    return _edit(context, parts, f"{parts.module}.in_proj_weight", parts.module, 1.0)


def output_edits(context: Context, parts: Parts) -> list[Edit]:
    """The edit of ``out_proj.weight (dim, dim)``: twice the product."""
    if not parts.inner:
        # Targeted by itself (all-linear does), it is a Linear that the forward pass never calls:
        # training leaves its B at zero, and PEFT merges whatever it holds once.
        return linear_edits(context, parts, transposed=False)
    attention = parts.module.removesuffix(f".{_OUT}")
    return _edit(context, parts, f"{parts.module}.weight", attention, _TWICE)


def is_output(context: Context, parts: Parts) -> bool:
    """Whether these are the factors of an attention's output projection."""
    attention, _, leaf = parts.module.rpartition(".")
    layer = context.names.layer(attention) if leaf == _OUT else None
    return layer is not None and layer.kind == KIND


def _edit(
    context: Context, parts: Parts, parameter: str, attention: str, times: float
) -> list[Edit]:
    config = context.config
    if config.use_dora or config.lora_bias or config.use_bdlora or config.velora_config:
        raise Unsupported(
            f"{attention} is a MultiheadAttention with DoRA, lora_bias, BD-LoRA or VeLoRA.",
            why="PEFT has no such layer, or does not merge it.",
        )
    refuse_residual(config, attention, KIND)
    if not context.only(parts, frozenset({"A", "B"})):
        return []
    product = linear_product(context, parts, attention)
    if product is None:
        return []
    found = f"its factors make a change of shape {product.shape}"
    if not check_shape(context, parts.any_tensor, parameter, product.shape, found):
        return []
    return [Edit(parameter, (LowRank(product.left, product.right, product.scale * times),))]
