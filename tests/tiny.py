"""Small inputs of odd shapes, written with safetensors' own library, and merged without ours."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 4, 6.0
# No row length divides a chunk, and a tensor is larger than the smallest chunk (1 MiB).
SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (1021, 1151),
    "model.layers.0.self_attn.k_proj.weight": (307, 1151),
    "model.layers.1.self_attn.q_proj.weight": (2049, 513),
    "model.layers.1.self_attn.v_proj.weight": (3, 70_001),
}
PLAIN = {"model.norm.weight": (1151,), "model.embed_tokens.weight": (211, 1151)}


def write_base(path: Path, dtype: torch.dtype = torch.bfloat16, *, shards: int = 2) -> None:
    """A llama-shaped base in ``shards`` files, with -0.0 in every tensor."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    names = [*SHAPES, *PLAIN]
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        tensors: dict[str, torch.Tensor] = {}
        for name in names[shard::shards]:
            values = torch.randn((SHAPES | PLAIN)[name], generator=generator) * 0.05
            values.view(-1)[::97] = -0.0
            tensors[name] = values.to(dtype)
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text('{"eos_token_id": 2}')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")


def write_adapter(path: Path, *, zero: bool = False, seed: int = 2) -> None:
    """A plain LoRA adapter on every matrix of `SHAPES`; with ``zero``, B is zero."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, cols) in SHAPES.items():
        key = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, cols, generator=generator) * 0.1
        b = torch.randn(rows, RANK, generator=generator) * 0.1
        tensors[f"{key}.lora_B.weight"] = b * 0 if zero else b
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "base_model_name_or_path": "base",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory, with safetensors' own reader."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def expected(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The merge in plain torch, whole tensors in float64."""
    tensors = read_tensors(base)
    factors = read_tensors(adapter)
    for name in SHAPES:
        key = "base_model.model." + name.removesuffix(".weight")
        a, b = (factors[f"{key}.lora_{x}.weight"].double() for x in "AB")
        wide = tensors[name].double() + (ALPHA / RANK) * (b @ a)
        tensors[name] = wide.float().to(tensors[name].dtype)
    return tensors


def files_of(path: Path, *, without: tuple[str, ...] = ("provenance.json",)) -> dict[str, bytes]:
    """Every file below a directory with its bytes; times apart."""
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in without
    }
