"""LoRA on embeddings: ``E + s * (B @ A).T`` (PEFT lora/layer.py, Embedding.get_delta_weight)."""

from __future__ import annotations

from remerge.adapters.deltas import Delta
from remerge.adapters.edits import Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.dora import dora_steps
from remerge.adapters.lora.products import Product, check_rank, check_shape, factor_pair
from remerge.errors import Unsupported


def embedding_edits(context: Context, parts: Parts) -> list[Edit]:
    """Edits of an ``Embedding`` with weight ``(tokens, dim)``: A is ``(r, tokens)``, B
    ``(dim, r)``."""
    if context.config.kasa_config is not None or context.config.use_bdlora is not None:
        raise Unsupported(
            f"KaSA or BD-LoRA on the embedding {parts.module}.",
            why="PEFT has these variants for fully connected layers only.",
        )
    allowed = {"embedding_A", "embedding_B"}
    if context.config.use_dora:
        allowed.add("magnitude_vector")
    if not context.only(parts, frozenset(allowed)):
        return []
    pair = factor_pair(context, parts, "embedding_A", "embedding_B")
    if pair is None:
        return []
    (a, b), parameter = pair, f"{parts.module}.weight"
    shape_a, shape_b = context.stored(a), context.stored(b)
    if len(shape_a) != 2 or len(shape_b) != 2:
        context.misfits.add(a, f"has shape {shape_a} and its partner {shape_b}", "shape")
        return []
    if not check_rank(context, pair, parts.module, shape_b[1], shape_a[0]):
        return []
    wanted = (shape_a[1], shape_b[0])
    found = f"its factors make a change of {wanted[0]} tokens by {wanted[1]}"
    if not check_shape(context, a, parameter, wanted, found):
        return []
    scale = context.config.scale(parts.module)
    product = Product(matrix(context.adapter, b), matrix(context.adapter, a), scale)
    step = product.low_rank(transposed=True)
    steps: list[Delta] = [step]
    if context.config.use_dora:
        steps = dora_steps(context, parts, step, True, wanted[1])
    return [Edit(parameter, tuple(steps))]
