"""LoRA on convolutions (PEFT lora/layer.py, _ConvNd.get_delta_weight).

A is a convolution to r channels with the layer's kernel, B one from r channels with kernel 1; one
after the other they are the convolution ``sum_r B[o, r] * A[r, i, ...]``: a matrix product on
weights seen as ``(out, in * kernel)``.
"""

from __future__ import annotations

import math

from remerge.adapters.deltas import Delta
from remerge.adapters.edits import Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.dora import dora_steps
from remerge.adapters.lora.linear import bias_edits
from remerge.adapters.lora.products import Product, check_rank, check_shape, factor_pair
from remerge.adapters.lora.residual import refuse_residual
from remerge.adapters.regions import Layer
from remerge.errors import Unsupported


def conv_edits(context: Context, parts: Parts, layer: Layer) -> list[Edit]:
    """Edits of a ``Conv1d``, ``Conv2d`` or ``Conv3d`` with weight ``(out, in, k...)``."""
    if layer.groups > 1:
        raise Unsupported(
            f"The adapter changes {parts.module}, a convolution with {layer.groups} groups.",
            why="PEFT cannot merge grouped convolutions either.",
            hint="Serve it as an adapter on its base.",
        )
    refuse_residual(context.config, parts.module, layer.kind)
    if not context.only(parts, frozenset({"A", "B", "B.bias", "magnitude_vector"})):
        return []
    pair = factor_pair(context, parts)
    if pair is None:
        return []
    a, b = pair
    shape_a, shape_b = context.stored(a), context.stored(b)
    if len(shape_a) < 3 or len(shape_b) != len(shape_a) or math.prod(shape_b[2:]) != 1:
        context.misfits.add(
            a, f"has shape {shape_a} and its lora_B {shape_b}: no convolution", "shape"
        )
        return []
    if not check_rank(context, pair, parts.module, shape_b[1], shape_a[0]):
        return []
    wanted = (shape_b[0], *shape_a[1:])
    parameter = f"{parts.module}.weight"
    found = f"its factors make a change of shape {wanted}"
    if not check_shape(context, a, parameter, wanted, found):
        return []
    left = matrix(context.adapter, b)
    product = Product(left, matrix(context.adapter, a), context.config.scale(parts.module))
    steps: list[Delta] = [product.low_rank()]
    if context.config.use_dora:
        steps = dora_steps(context, parts, product.low_rank(), False, wanted[0])
    elif "magnitude_vector" in parts.tensors:
        context.only(parts, frozenset({"A", "B", "B.bias"}))
    return [Edit(parameter, tuple(steps)), *bias_edits(context, parts, product)]
