"""A tiny Llama, LoRA adapters for it, and each adapter merged by itself: what mergekit starts from.

The adapters are merged here with numpy in float64, by PEFT's rules: W + scale * B @ A, the scale
being alpha / r, or alpha / sqrt(r) for rsLoRA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

# Odd sizes, that a model of transformers can still have: three heads of ten, one of keys.
HIDDEN, HEADS, HEAD, INNER, VOCABULARY, LAYERS = 39, 3, 10, 53, 61, 2
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_bias": False,
}
Shapes = Mapping[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def _llama() -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
                "self_attn.k_proj": (HEAD, HIDDEN),
                "self_attn.v_proj": (HEAD, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
                "mlp.gate_proj": (INNER, HIDDEN),
                "mlp.up_proj": (INNER, HIDDEN),
                "mlp.down_proj": (HIDDEN, INNER),
                "input_layernorm": (HIDDEN,),
                "post_attention_layernorm": (HIDDEN,),
            }.items()
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


LLAMA = _llama()


def one_matrix(rows: int, columns: int) -> Shapes:
    """No model, one layer with a bias: for shapes that no model has."""
    name = "model.layers.0.self_attn.q_proj"
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


@dataclass(frozen=True)
class Lora:
    """An adapter: the rank of each target, by the last part of its name."""

    ranks: Mapping[str, int]
    seed: int
    alpha: float = 6.0
    rslora: bool = False
    # PEFT's lora_bias: B has a bias, scaled as B is; the targets need one too.
    bias: bool = False
    # Of the values of A and B. The base's are about 0.05, a delta's about 2 * size ** 2.
    size: float = 0.1
    # Every fourth row of B is zero, and so of the delta.
    rows_of_zeros: bool = False

    def scale(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class Models:
    """``base`` and ``adapters`` for remerge; in float64 ``wide``, the same base, and ``merged``,
    the base with each adapter, for mergekit; ``deltas`` are what each adapter adds."""

    base: Path
    adapters: tuple[Path, ...]
    wide: Path
    merged: tuple[Path, ...]
    tensors: Tensors
    deltas: tuple[Tensors, ...]


def write_models(
    place: Path,
    loras: Sequence[Lora],
    *,
    shapes: Shapes = LLAMA,
    dtype: torch.dtype = torch.float64,
    size: float = 0.05,
) -> Models:
    """``size`` is that of the base's values."""
    numbers = np.random.default_rng(1)
    tensors = {
        name: torch.from_numpy(numbers.normal(0, size, shape)).to(dtype)
        for name, shape in shapes.items()
    }
    _write_checkpoint(place / "base", tensors)
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    _write_checkpoint(place / "wide", wide)
    adapters: list[Path] = []
    deltas: list[Tensors] = []
    for index, lora in enumerate(loras):
        adapters.append(place / f"adapter{index}")
        deltas.append(_write_adapter(adapters[-1], lora, shapes))
    merged = write_merged(place, wide, deltas)
    return Models(place / "base", tuple(adapters), place / "wide", merged, wide, tuple(deltas))


def write_merged(place: Path, base: Tensors, deltas: Sequence[Tensors]) -> tuple[Path, ...]:
    """The base with each of the deltas, as checkpoints in float64."""
    paths = tuple(place / f"merged{index}" for index in range(len(deltas)))
    for path, delta in zip(paths, deltas, strict=True):
        _write_checkpoint(path, {n: t + delta[n] if n in delta else t for n, t in base.items()})
    return paths


def _write_checkpoint(path: Path, tensors: Tensors) -> None:
    path.mkdir(parents=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (path / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": dtype}))


def _write_adapter(path: Path, lora: Lora, shapes: Shapes) -> Tensors:
    """Write it, and give what it adds to each tensor."""
    path.mkdir(parents=True)
    numbers = np.random.default_rng(lora.seed)
    factors: Tensors = {}
    deltas: Tensors = {}

    def factor(name: str, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        values = numbers.normal(0, lora.size, shape).astype(np.float32)
        if lora.rows_of_zeros and name.endswith("lora_B.weight"):
            values[::4] = 0
        factors[f"base_model.model.{name}"] = torch.from_numpy(values)
        return values

    for name in shapes:
        module = name.removesuffix(".weight")
        rank = lora.ranks.get(module.rpartition(".")[2])
        if rank is None or not name.endswith(".weight"):
            continue
        rows, columns = shapes[name]
        scale = lora.scale(rank)
        if module.endswith("embed_tokens"):
            # Stored as (vocabulary, width), written for the transpose of it.
            a = factor(f"{module}.lora_embedding_A", rank, rows).astype(np.float64)
            b = factor(f"{module}.lora_embedding_B", columns, rank).astype(np.float64)
            delta = scale * (b @ a).T
        else:
            a = factor(f"{module}.lora_A.weight", rank, columns).astype(np.float64)
            b = factor(f"{module}.lora_B.weight", rows, rank).astype(np.float64)
            delta = scale * (b @ a)
        deltas[name] = torch.from_numpy(np.ascontiguousarray(delta))
        if lora.bias:
            bias = factor(f"{module}.lora_B.bias", rows).astype(np.float64)
            deltas[f"{module}.bias"] = torch.from_numpy(scale * bias)
    save_file(factors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": max(lora.ranks.values()),
        "lora_alpha": lora.alpha,
        "rank_pattern": dict(lora.ranks),
        "use_rslora": lora.rslora,
        "lora_bias": lora.bias,
        "target_modules": sorted(lora.ranks),
        "base_model_name_or_path": "base",
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return deltas
