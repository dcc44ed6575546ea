"""Run in a quantiser's environment: whether it can quantise a model, from its configuration."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from remerge.engines.calling import Teller, answer
from remerge.errors import BadInput, Unsupported

# Left as they are, as every usual recipe does: the head, and what routes tokens to experts.
IGNORED = ("lm_head", "gate", "router", "shared_expert_gate", "embed_out")


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Raise `Unsupported` for a model that transformers does not build as a causal language model
    there, `BadInput` where a group of columns would be cut."""
    model, options = _skeleton(request["config"]), request["options"]
    if "method" in options:
        check_experts(model)
    check_groups(model, options["group_size"])
    return {}


def _skeleton(config: Mapping[str, Any]) -> Any:
    """The model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type", "a model without a type")
    try:
        built = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(built)
    except (ValueError, KeyError, ImportError) as error:
        raise Unsupported(
            f"The engine's transformers does not build {kind} as a causal language model.",
            hint="Write a checkpoint instead (leave out --to).",
        ) from error


def check_experts(model: Any) -> None:
    """Raise `Unsupported` for experts, which llm-compressor takes apart: it writes them under names
    by which transformers does not find them, and what cannot be read cannot be checked."""
    if any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()):
        raise Unsupported(
            "What llm-compressor writes of a mixture of experts cannot be read back here.",
            why="It names experts in its own way, and transformers does not load them.",
            hint="Use --to gptqmodel, or a GGUF file.",
        )


def check_groups(model: Any, size: int) -> None:
    """Raise `BadInput` where ``size`` does not divide a layer's columns."""
    cut = {name: layer for name, layer in linear_layers(model) if layer.in_features % size}
    if not cut:
        return
    name, layer = next(iter(cut.items()))
    columns = {found.in_features for _, found in linear_layers(model)}
    fitting = [n for n in (128, 64, 32, 16) if all(count % n == 0 for count in columns)]
    raise BadInput(
        f"{name} has {layer.in_features} columns, which is no multiple of the group size {size} "
        f"({len(cut)} such layers).",
        why="A group of columns shares one scale, and no kernel reads a group that is cut.",
        hint=f"Give --group-size {fitting[0]}." if fitting else "Use --to gguf:Q8_0 instead.",
    )


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """What is quantised: linear layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in IGNORED:
            yield name, module


if __name__ == "__main__":
    answer(work)
