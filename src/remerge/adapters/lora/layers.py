"""Which rule a LoRA layer follows: decided by what the module is, not by what the file says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from remerge.adapters.edits import Edit
from remerge.adapters.keys import Parts
from remerge.adapters.lora import attention
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.conv import conv_edits
from remerge.adapters.lora.embedding import embedding_edits
from remerge.adapters.lora.experts import parameter_edits, targets
from remerge.adapters.lora.linear import linear_edits
from remerge.adapters.regions import Layer

_PLAIN = ("Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d", attention.KIND)


def layer_edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    """Edits of all LoRA layers; misfits for those the model has no place for."""
    edits: list[Edit] = []
    by_module = sorted(layers, key=lambda parts: (parts.module, parts.inner))
    for (module, _), group in groupby(by_module, key=lambda parts: (parts.module, parts.inner)):
        wrappers = list(group)
        layer = context.names.layer(module)
        if layer is None:
            for parts in wrappers:
                context.misfits.add(
                    parts.any_tensor, f"the model has no module {module}", "missing"
                )
        elif layer.kind not in _PLAIN and not attention.is_output(context, wrappers[0]):
            edits += _parameter_edits(context, wrappers, layer)
        else:
            for parts in wrappers:
                edits += _plain_edits(context, parts, layer)
    return edits


def _parameter_edits(context: Context, wrappers: Sequence[Parts], layer: Layer) -> list[Edit]:
    module = wrappers[0].module
    single = len(wrappers) == 1 and not wrappers[0].depth
    if single and not targets(context, module):
        # A router that was a Linear in older transformers is now a module of its own class.
        shape = context.shape(f"{module}.weight")
        if shape is not None and len(shape) == 2:
            return linear_edits(context, wrappers[0], transposed=False)
    return parameter_edits(context, wrappers, layer)


def _plain_edits(context: Context, parts: Parts, layer: Layer) -> list[Edit]:
    embeds = "embedding_A" in parts.tensors or "embedding_B" in parts.tensors
    if parts.depth:
        context.misfits.add(
            parts.any_tensor, f"is wrapped twice, but {parts.module} is one {layer.kind}", "layer"
        )
        return []
    if attention.is_output(context, parts):
        return attention.output_edits(context, parts)
    if embeds != (layer.kind == "Embedding") and not (embeds and layer.kind == "Linear"):
        # Names taken from the checkpoint alone call an embedding Linear too; its shape is checked.
        context.misfits.add(
            parts.any_tensor, f"cannot belong to {parts.module}, a {layer.kind}", "layer"
        )
        return []
    if embeds:
        return embedding_edits(context, parts)
    if layer.kind == attention.KIND:
        return attention.attention_edits(context, parts)
    if layer.kind in ("Linear", "Conv1D"):
        return linear_edits(context, parts, layer.kind == "Conv1D")
    return conv_edits(context, parts, layer)
