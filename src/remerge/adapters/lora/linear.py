"""LoRA on fully connected layers: ``W + s * B @ A`` (arXiv:2106.09685; PEFT lora/layer.py, Linear).

Conv1D of transformers stores its weight transposed. Which of the two a layer is decides its class,
never ``fan_in_fan_out``, which PEFT corrects by the class too.
"""

from __future__ import annotations

from remerge.adapters.deltas import Added, Delta
from remerge.adapters.edits import Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.dora import dora_steps
from remerge.adapters.lora.products import Product, check_shape, linear_product
from remerge.adapters.lora.residual import Residual, residual_method
from remerge.errors import Unsupported


def linear_edits(context: Context, parts: Parts, transposed: bool) -> list[Edit]:
    """Edits of a ``Linear`` with weight ``(out, in)``, transposed of a ``Conv1D``."""
    product = linear_product(context, parts, parts.module)
    if product is None:
        return []
    parameter = f"{parts.module}.weight"
    rows, cols = product.shape
    wanted = (cols, rows) if transposed else (rows, cols)
    found = f"its factors make a change of shape {wanted}"
    if not check_shape(context, parts.any_tensor, parameter, wanted, found):
        return []
    steps: list[Delta] = list(_residual(context, parameter, product, transposed))
    if context.config.use_dora:
        steps += dora_steps(context, parts, product.low_rank(transposed), transposed, rows)
    else:
        context.only(parts, frozenset(parts.tensors) - {"magnitude_vector"})
        steps.append(product.low_rank(transposed))
    return [Edit(parameter, tuple(steps)), *bias_edits(context, parts, product)]


def bias_edits(context: Context, parts: Parts, product: Product) -> list[Edit]:
    """``bias + s * lora_B.bias`` where the configuration has ``lora_bias`` (PEFT lora/layer.py)."""
    name = parts.tensors.get("B.bias")
    if name is None:
        if context.config.lora_bias:
            context.misfits.add(parts.any_tensor, "its lora_B.bias is missing", "unpaired")
        return []
    if not context.config.lora_bias:
        context.misfits.add(name, "lora_bias is false in adapter_config.json", "unknown")
        return []
    wanted = (product.shape[0],)
    parameter = f"{parts.module}.bias"
    found = f"it has shape {context.stored(name)}"
    if not check_shape(context, name, parameter, wanted, found):
        return []
    if context.stored(name) != wanted:
        context.misfits.add(name, f"{found}, the layer has {wanted[0]} outputs", "shape")
        return []
    values = matrix(context.adapter, name, (wanted[0], 1))
    return [Edit(parameter, (Added(values, product.scale),))]


def _residual(
    context: Context, parameter: str, product: Product, transposed: bool
) -> tuple[Residual, ...]:
    method = residual_method(context.config)
    if method is None or parameter in context.wholes:
        # A saved base layer is stored as training left it: it already is the residual.
        return ()
    if transposed and method != "pissa":
        raise Unsupported(
            f"{context.config.init or 'KaSA'} on {parameter}, a Conv1D layer.",
            why="PEFT's initialisation does not support transposed weights.",
        )
    shape = (product.shape[1], product.shape[0]) if transposed else product.shape
    return (Residual(method, product.rank, product.scale, shape, transposed),)
