"""Bases that share shards, and adapters on them, small enough to be merged in a blink."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 2
# What the adapters change lies in two shards; the third is every base's own, or the same in all.
SHARDS = (
    {"model.layers.0.self_attn.q_proj.weight": (48, 40)},
    {"model.layers.1.self_attn.q_proj.weight": (48, 40)},
    {"model.embed_tokens.weight": (64, 40), "model.norm.weight": (40,)},
)
TOUCHED = [name for shard in SHARDS[:2] for name in shard]


def write_base(path: Path, variant: int = 0) -> None:
    """A base in three shards; variants differ in the first one alone."""
    path.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(SHARDS, 1):
        generator = torch.Generator().manual_seed(10 * number + (variant if number == 1 else 0))
        tensors = {
            name: (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)
            for name, shape in shapes.items()
        }
        file = f"model-{number:05d}-of-{len(SHARDS):05d}.safetensors"
        save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text('{"eos_token_id": 2}')


def write_adapter(path: Path, seed: int = 0) -> None:
    """A plain LoRA adapter on the tensors of `TOUCHED`."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name in TOUCHED:
        key = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, 40, generator=generator) * 0.1
        tensors[f"{key}.lora_B.weight"] = torch.randn(48, RANK, generator=generator) * 0.1
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "base",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
