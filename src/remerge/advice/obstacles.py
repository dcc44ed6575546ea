"""What keeps an adapter from being served unmerged: read from its configuration and its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from remerge.adapters.adapter import Adapter
from remerge.advice.rules import Obstacle, rules
from remerge.engines.servers.vllm import RANKS
from remerge.sources.codecs.stated import quantisation_stated
from remerge.sources.documents import as_object

_RESIDUAL = ("pissa", "olora")


def obstacles_of(adapter: Adapter) -> tuple[str, ...]:
    """Names of obstacles of rules.yaml that this adapter has."""
    if adapter.trainer != "PEFT":
        return ("other-trainer",)
    if adapter.config.get("peft_type") != "LORA":
        return ("other-family",)
    return tuple(_of_lora(adapter))


def obstacles_of_base(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of a base's configuration."""
    stated = quantisation_stated(config).get("quant_method")
    return ("bitsandbytes-base",) if stated == "bitsandbytes" else ()


def obstacle_to(engine: str, adapter: Adapter, base: Mapping[str, Any]) -> Obstacle | None:
    """The first thing that keeps an engine from serving an adapter unmerged on a base of this
    configuration. transformers has PEFT do it, which runs all that PEFT wrote."""
    for name in (*obstacles_of(adapter), *obstacles_of_base(base)):
        found = rules().obstacles[name]
        if name == "other-trainer" if engine == "transformers" else engine in found.engines:
            return found
    return None


def _of_lora(adapter: Adapter) -> Iterator[str]:
    config = adapter.config
    if config.get("use_dora"):
        yield "dora"
    saved = config.get("modules_to_save")
    if saved:
        yield "modules-to-save"
    elif any(_is_whole(name) for name in adapter.tensors):
        yield "whole-tensors"
    if config.get("trainable_token_indices"):
        yield "trained-tokens"
    if config.get("bias", "none") not in (None, "none") or config.get("lora_bias"):
        yield "biases"
    if config.get("target_parameters"):
        yield "stacked-experts"
    # A conversion to a plain LoRA writes true in its place.
    if str(config.get("init_lora_weights")).lower() in _RESIDUAL or config.get("kasa_config"):
        yield "residual-base"
    if config.get("alpha_pattern"):
        yield "alpha-by-module"
    if config.get("rank_pattern"):
        yield "rank-by-module"
    ranks = [config.get("r"), *(as_object(config.get("rank_pattern")) or {}).values()]
    if any(isinstance(rank, int) and rank > RANKS[-1] for rank in ranks):
        yield "large-rank"


def _is_whole(name: str) -> bool:
    """Whether a tensor is no factor, bias or token row but a whole parameter."""
    parts = name.split(".")
    other = ("bias", "trainable_tokens_delta", "token_adapter")
    return not any(part.startswith("lora_") or part in other for part in parts)
