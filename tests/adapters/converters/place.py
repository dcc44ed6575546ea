"""Tiny bases and foreign adapters on disk, and the merge of the two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from remerge.adapters.adapter import open_adapter
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.opening import plan_tensors, read_changes
from remerge.merging.recipe import Recipe
from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.reading import decoded

HIDDEN, INNER, VOCABULARY, LAYERS = 16, 24, 40, 2
HEADS, KV_HEADS = 4, 2
HEAD = HIDDEN // HEADS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
OUTER = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN)}

Tensors = dict[str, torch.Tensor]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def llama_modules() -> dict[str, tuple[int, int]]:
    """Every matrix of the base by its module's name, with its shape."""
    inner = {f"model.layers.{n}.{p}": s for n in range(LAYERS) for p, s in PROJECTIONS.items()}
    return {**inner, **OUTER}


def write_llama(path: Path, **config: Any) -> Path:
    """A float32 Llama of two layers, whole, so that transformers could build it."""
    shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": s for n, s in llama_modules().items()}
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    return write_base(path, shapes, {**LLAMA, **config})


def write_base(path: Path, shapes: Mapping[str, tuple[int, ...]], config: Any) -> Path:
    path.mkdir(parents=True)
    values = {n: rand(*s, seed=i) * 0.1 for i, (n, s) in enumerate(shapes.items())}
    save_file(values, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_adapter(path: Path, file: str, tensors: Tensors, config: Any = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    values = {name: value.contiguous() for name, value in tensors.items()}
    if file.endswith(".safetensors"):
        save_file(values, path / file)
    else:
        torch.save(values, path / file)
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def plan(base: Path, adapter: Path) -> MergedCheckpoint:
    """The merge with the adapter told in PEFT's terms for this base; no weight is read yet."""
    checkpoint = open_checkpoint(base)
    readable = decoded(checkpoint)
    opened = open_adapter(adapter).for_base(readable)
    changes = read_changes(readable, opened)
    plans = plan_tensors(checkpoint, readable, changes, Recipe())
    return MergedCheckpoint(checkpoint, plans, checkpoint.config)


def merged(base: Path, adapter: Path) -> Tensors:
    """Every tensor of the merge, as remerge computes it."""
    found = plan(base, adapter)
    return {name: found[name][:] for name in found}


def check_merge(base: Path, adapter: Path, changed: Tensors) -> None:
    """The merge must be these float64 tensors rounded once, and the base everywhere else."""
    (weights,) = base.glob("*.safetensors")
    before, after = load_file(weights), merged(base, adapter)
    assert set(after) == set(before)
    for name, value in before.items():
        if name in changed:
            assert not torch.equal(changed[name].float(), value), name
            torch.testing.assert_close(after[name], changed[name].float(), rtol=2e-7, atol=1e-8)
        else:
            assert torch.equal(after[name], value), name
