"""Small random models of several architectures, adapters for them, and what compressed-tensors
itself makes of a merge."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers as t
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.utils import generate_gparam
from peft import LoraConfig, get_peft_model

from remerge.merging.schemes.registry import SCHEMES
from tests.sources.codecs import test_compressed_tensors as library

Tensors = dict[str, torch.Tensor]
_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}


def _configs() -> dict[str, Any]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    return {
        "llama": t.LlamaConfig(**_SIZES),
        "qwen2": t.Qwen2Config(**_SIZES),
        "qwen3-tied": t.Qwen3Config(**_SIZES, head_dim=64, tie_word_embeddings=True),
        "gemma": t.GemmaConfig(**_SIZES, head_dim=64),
        "phi3": t.Phi3Config(**_SIZES, pad_token_id=0),
        "mixtral": t.MixtralConfig(**_SIZES, num_local_experts=4),
        "qwen3-moe": t.Qwen3MoeConfig(**_SIZES, **_EXPERTS, moe_intermediate_size=128),
        "qwen2-moe": t.Qwen2MoeConfig(
            **_SIZES,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            shared_expert_intermediate_size=128,
        ),
        "gpt-oss": t.GptOssConfig(
            **_SIZES, num_local_experts=3, num_experts_per_tok=2, head_dim=64
        ),
        "gemma3": t.Gemma3Config(
            text_config={**_SIZES, "head_dim": 64}, vision_config=vision, mm_tokens_per_image=4
        ),
        # Neither rows nor columns divide into what blocks and groups ask for.
        "odd": t.LlamaConfig(
            **{**_SIZES, "hidden_size": 144, "intermediate_size": 320, "head_dim": 36}
        ),
        "gpt2": t.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2),
        "llama4": t.Llama4ForCausalLM.config_class(
            **_SIZES, num_local_experts=2, intermediate_size_mlp=128, head_dim=64
        ),
    }


def write_base(kind: str, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    torch.manual_seed(len(kind))
    config = _configs()[kind]
    by_name: dict[str, Any] = {
        "gemma3": t.Gemma3ForConditionalGeneration,
        "llama4": t.Llama4ForCausalLM,
    }
    model = by_name[kind](config) if kind in by_name else t.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    model.to(dtype).save_pretrained(path)


def write_adapter(base: Path, path: Path, kind: str) -> None:
    """A LoRA of some layers only, so that others are quantised as they are."""
    targets: Any = ["q_proj", "o_proj"]
    if kind in ("phi3", "gpt2"):
        targets = ["qkv_proj", "down_proj"] if kind == "phi3" else ["c_attn"]
    if kind == "gemma3":
        targets = r".*language_model.*\.(q_proj|o_proj)"
    stacked = ["mlp.experts.gate_up_proj"] if kind in ("mixtral", "qwen3-moe") else None
    loader = t.AutoModelForImageTextToText if kind == "gemma3" else t.AutoModelForCausalLM
    model: Any = loader.from_pretrained(base, dtype="auto")
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, target_parameters=stacked)
    adapted = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(path)


def scheme_of(name: str) -> QuantizationScheme:
    return preset_name_to_scheme(SCHEMES[name].preset, ["Linear"])


def parts_of(
    module: str, merged: Tensors, scheme: QuantizationScheme, dtype: torch.dtype
) -> Tensors:
    """The merged weight of a module (float32) as compressed-tensors writes it. llm-compressor
    gives layers that vLLM fuses the smallest of their global scales."""
    whole = None
    if scheme.weights.strategy == "tensor_group":
        parent, _, last = module.rpartition(".")
        groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
        fused = next((group for group in groups if last in group), (last,))
        scales = [
            generate_gparam(weight.amin(), weight.amax())
            for weight in (merged[f"{parent}.{each}.weight"] for each in fused)
        ]
        whole = reduce(torch.minimum, scales)
    return library.quantised(merged[f"{module}.weight"], scheme, dtype, whole)


def stated(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["quantization_config"]
