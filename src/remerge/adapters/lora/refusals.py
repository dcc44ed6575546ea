"""Kinds of LoRA that no merged weight can express, or not from these files: refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.adapters.lora.config import LoraConfig
from remerge.errors import Unsupported

_SERVE = "Serve it as an adapter on its base."


def refuse_variants(config: LoraConfig, raw: Mapping[str, Any]) -> None:
    """Raise `Unsupported`, with the way out, for a variant that cannot be merged."""
    for field, (name, why, hint) in _BY_FIELD.items():
        if raw.get(field):
            raise Unsupported(f"This is a {name} adapter ({field} is set).", why=why, hint=hint)
    if config.init.startswith("pissa_niter"):
        raise Unsupported(
            f"The adapter was initialised with {config.init}.",
            why="Its residual base came from a randomised SVD, which nobody can repeat.",
            hint="Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA.",
        )
    refusal = _BY_INIT.get(config.init)
    if refusal is not None:
        why, hint = refusal
        raise Unsupported(f"The adapter was initialised with {config.init}.", why=why, hint=hint)
    if config.init and config.init not in _KNOWN_INITS:
        raise Unsupported(
            f"init_lora_weights is {config.init!r}, which this version does not know.",
            why="Some initialisations change the base, so that adding the adapter would be wrong.",
            hint="If this one leaves the base alone, set init_lora_weights to true.",
        )
    residual = config.init in ("pissa", "olora")
    if config.kasa_config is not None and (residual or config.use_dora or config.use_bdlora):
        raise Unsupported("KaSA is combined with another variant.", why="PEFT has no such layer.")
    if config.use_bdlora is not None and config.use_dora:
        raise Unsupported("BD-LoRA is combined with DoRA.", why="PEFT has no such layer.")


_KNOWN_INITS = frozenset(
    {"true", "gaussian", "orthogonal", "eva", "mica", "pissa", "olora", "lora_ga"}
)

_BY_FIELD: Mapping[str, tuple[str, str, str]] = {
    "alora_invocation_tokens": (
        "aLoRA",
        "It acts only after its invocation tokens, so no single weight is right for every token.",
        _SERVE,
    ),
    "arrow_config": (
        "Arrow",
        "It chooses among several LoRAs for every token.",
        "Merge the LoRA experts one at a time.",
    ),
    "use_qalora": (
        "QALoRA",
        "It was trained into the zero points of a GPTQ base.",
        "Merge it with the QA-LoRA authors' script.",
    ),
    "layer_replication": (
        "layer-replicated",
        "Replicated layers share weights but not deltas, so the merged model has more layers.",
        "Build the model with the layers copied, save it, and merge onto that.",
    ),
    "megatron_config": (
        "Megatron",
        "Its factors are split over tensor-parallel ranks in Megatron's own layout.",
        "Export it to the Hugging Face layout first.",
    ),
}

_BY_INIT: Mapping[str, tuple[str, str]] = {
    "corda": (
        "Its residual base rests on covariances of training data that are not saved.",
        "Save it with path_initial_model_for_weight_conversion, which makes a plain LoRA.",
    ),
    "loftq": (
        "It was trained on a LoftQ-quantised base, which the original base is not.",
        "Merge onto the dequantised LoftQ base with init_lora_weights set to true.",
    ),
}
