"""Tiny models with several PEFT adapters, combined and merged by PEFT itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GPT2Config,
    LlamaConfig,
    ResNetConfig,
)

import remerge


@dataclass(frozen=True)
class Case:
    """A model on disk with adapters, one directory each."""

    place: Path
    auto: Any
    paths: list[str | Path] = field(default_factory=list[str | Path])

    @property
    def base(self) -> Path:
        return self.place / "base"

    def combined(self, **asked: Any) -> dict[str, torch.Tensor]:
        """What PEFT's ``add_weighted_adapter`` and merge make of the base, by checkpoint name."""
        model = PeftModel.from_pretrained(
            self.auto.from_pretrained(self.base), self.paths[0], adapter_name="a0"
        )
        for number, path in enumerate(self.paths[1:], 1):
            model.load_adapter(path, adapter_name=f"a{number}")
        names = [f"a{number}" for number in range(len(self.paths))]
        model.add_weighted_adapter(names, adapter_name="new", **asked)
        # PEFT's forward pass of the combination is what counts, not its merge's rounding.
        model.set_adapter("new")
        merged = model.merge_and_unload(adapter_names=["new"])
        return {name: values.clone() for name, values in merged.state_dict().items()}

    def ours(self, method: str, weights: Sequence[float], **asked: Any) -> dict[str, torch.Tensor]:
        with remerge.open_merged(
            self.base, self.paths, method=method, weights=weights, parameters=asked
        ) as merged:
            return {name: merged[name][...] for name in merged}

    def base_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.auto.from_pretrained(self.base).state_dict())


def llama(place: Path, configs: Sequence[dict[str, Any]], *, tied: bool = False) -> Case:
    config = LlamaConfig(
        vocab_size=47,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return _made(place, AutoModelForCausalLM, config, configs)


def gpt2(place: Path, configs: Sequence[dict[str, Any]]) -> Case:
    config = GPT2Config(vocab_size=47, n_embd=24, n_layer=2, n_head=4, n_positions=32)
    return _made(place, AutoModelForCausalLM, config, configs)


def resnet(place: Path, configs: Sequence[dict[str, Any]]) -> Case:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return _made(place, AutoModelForImageClassification, config, configs)


def _made(place: Path, auto: Any, config: Any, configs: Sequence[dict[str, Any]]) -> Case:
    torch.manual_seed(11)
    auto.from_config(config).save_pretrained(place / "base")
    case = Case(place, auto)
    for number, asked in enumerate(configs):
        model: Any = get_peft_model(auto.from_pretrained(place / "base"), LoraConfig(**asked))
        _train(model, number)
        model.save_pretrained(place / f"adapter{number}")
        case.paths.append(place / f"adapter{number}")
    return case


def _train(model: Any, seed: int) -> None:
    """Random factors: a new adapter's B is zero."""
    generator = torch.Generator().manual_seed(100 + seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def agree(
    case: Case,
    wanted: dict[str, torch.Tensor],
    found: dict[str, torch.Tensor],
    *,
    tolerance: float = 2e-6,
    name_of: Callable[[str], str] = lambda name: name,
) -> None:
    """Equal to a share of the largest value, which PEFT computes in float32; and not the base."""
    base, changed = case.base_tensors(), 0
    for name, values in found.items():
        other = wanted[name_of(name)]
        scale = float(other.abs().max()) or 1.0
        assert float((values - other).abs().max()) <= tolerance * max(1.0, scale), name
        changed += not torch.allclose(other, base[name_of(name)], atol=1e-3)
    assert changed
