"""LoRA adapters of PEFT (arXiv:2106.09685): what is their own among the families of adapters."""

from __future__ import annotations

from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.lora.config import Context, LoraConfig
from remerge.adapters.lora.experts import stack_notes
from remerge.adapters.lora.keys import layer_key
from remerge.adapters.lora.layers import layer_edits
from remerge.adapters.lora.refusals import refuse_variants
from remerge.adapters.tuner import Tuner


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    def shape(part: str) -> tuple[int, ...] | None:
        key = parts.tensors.get(part)
        return None if key is None else tuple(adapter.tensors[key].shape)

    if "embedding_A" in parts.tensors or "embedding_B" in parts.tensors:
        # (r, tokens) and (dim, r), turned to what a Linear's (tokens, dim) weight would have.
        tokens, dim = shape("embedding_A"), shape("embedding_B")
        return FactorShapes(dim and dim[::-1], tokens and tokens[::-1])
    return FactorShapes(shape("A"), shape("B"))


def _notes(context: Context, keys: Keys) -> list[str]:
    notes: list[str] = []
    init = context.config.init
    if init == "lora_ga":
        notes.append(
            "LoRA-GA trains on a base from which the initial factors were subtracted; PEFT adds "
            "the adapter to the original base all the same, and so does this merge. Compare the "
            "result with the adapter as it was trained."
        )
    if init in ("pissa", "olora") or context.config.kasa_config is not None:
        notes.append(
            f"The adapter was trained on a residual of the base ({init or 'kasa'}), which was "
            "derived again from this base as PEFT does. If this base already is the residual that "
            "training saved, set init_lora_weights to true."
        )
    if any(parts.inner and parts.module.endswith(".out_proj") for parts in keys.layers):
        notes.append(
            "The change of MultiheadAttention's output projection is added twice, as PEFT does in "
            "training and in merging."
        )
    return notes + stack_notes(context, keys.layers)


LORA = Tuner(
    "lora", LoraConfig, layer_key, layer_edits, shapes=_shapes, check=refuse_variants, notes=_notes
)
