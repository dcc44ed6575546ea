"""What the names in an adapter mean in a checkpoint.

PEFT names what it trained after the model in memory; a checkpoint follows the layout of the hub.
`find_names` compares the two: by name where that provably suffices, else by building the model's
skeleton and asking transformers' loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.adapters.direct_names import DirectNames, are_direct, are_plain, direct_names
from remerge.adapters.facts import ModelHint, TensorFacts, Wanted
from remerge.adapters.regions import Names
from remerge.errors import Unsupported

__all__ = [
    "DirectNames",
    "ModelHint",
    "TensorFacts",
    "Wanted",
    "direct_names",
    "find_names",
    "model_names",
]


def find_names(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorFacts],
    hint: ModelHint,
    wanted: Wanted,
) -> Names:
    """The meaning of an adapter's names in a checkpoint with this config.json and these tensors.

    Raises `Unsupported` where the model cannot be built without code from the checkpoint.
    """
    if not wanted.order and are_direct(config, tensors, wanted):
        return direct_names(tensors)
    return model_names(config, tensors, hint, wanted)


def model_names(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorFacts],
    hint: ModelHint,
    wanted: Wanted | None = None,
) -> Names:
    """Names under the model class that the adapter was trained with, as transformers builds it."""
    wanted = wanted or Wanted({}, {})
    if "_class_name" in config and "model_type" not in config:
        # A component of a diffusers pipeline is stored under its own names, nothing tied.
        return direct_names(tensors)
    # Importing transformers takes seconds, and most merges can do without.
    from remerge.adapters import meta_model, model_names

    if meta_model.knows(config.get("model_type")):
        return model_names.likeliest_names(config, tensors, hint, wanted)
    if are_plain(config, tensors, wanted):
        return direct_names(tensors)
    raise Unsupported(
        f"transformers has no model type {config.get('model_type')!r}, and the adapter's names do"
        " not follow plainly from those in the checkpoint.",
        why="Code that comes with a checkpoint is never run, so how it stores, ties or transposes"
        " its weights is unknown.",
        hint="Convert the base to a model type of transformers, or update transformers.",
    )
