"""Adapters as mlx-lm writes them, against the formulas of mlx_lm/tuner/{lora,dora}.py in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remerge.adapters.adapter import check_finite, open_adapter
from remerge.errors import BadInput, Unsupported

from .place import Tensors, check_merge, llama_modules, plan, rand, write_adapter, write_base
from .place import write_llama as llama

RANK, SCALE = 3, 2.5
CONFIG: dict[str, Any] = {
    "model": "org/base",
    "fine_tune_type": "lora",
    "num_layers": 16,
    "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
}


def _factors(modules: dict[str, tuple[int, int]]) -> Tensors:
    tensors: Tensors = {}
    for seed, (module, (rows, cols)) in enumerate(modules.items()):
        looked_up = module.endswith("embed_tokens")
        tensors[f"{module}.lora_a"] = rand(rows if looked_up else cols, RANK, seed=seed)
        tensors[f"{module}.lora_b"] = rand(RANK, cols if looked_up else rows, seed=seed)
    return tensors


def _write(path: Path, tensors: Tensors, **config: Any) -> Path:
    return write_adapter(path, "adapters.safetensors", tensors, {**CONFIG, **config})


def _change(tensors: Tensors, module: str) -> torch.Tensor:
    a, b = tensors[f"{module}.lora_a"].double(), tensors[f"{module}.lora_b"].double()
    if module.endswith("embed_tokens"):
        return (SCALE * a) @ b
    return (SCALE * b.T) @ a.T


def test_every_layer_changes_as_fuse_says(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    tensors = _factors(llama_modules())
    adapter = _write(tmp_path / "adapter", tensors)
    weights = load_file(base / "model.safetensors")
    changed = {
        f"{m}.weight": weights[f"{m}.weight"].double() + _change(tensors, m)
        for m in llama_modules()
    }
    check_merge(base, adapter, changed)


@pytest.mark.parametrize("config", [{"fine_tune_type": "dora"}, {"use_dora": True}])
def test_dora_has_norms_of_rows(tmp_path: Path, config: dict[str, Any]) -> None:
    base = llama(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    modules = {n: s for n, s in llama_modules().items() if n.endswith(("v_proj", "down_proj"))}
    tensors, changed = _factors(modules), {}
    for module, (rows, _) in modules.items():
        tensors[f"{module}.m"] = m = rand(rows, seed=7).abs()
        adapted = weights[f"{module}.weight"].double() + _change(tensors, module)
        norm = torch.linalg.norm(adapted, axis=1)
        changed[f"{module}.weight"] = (m.double() / norm)[:, None] * adapted
    check_merge(base, _write(tmp_path / "adapter", tensors, **config), changed)


def _mixtral(path: Path, experts: int) -> Path:
    from transformers import MixtralConfig

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "vocab_size": 20,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": experts,
    }
    config = MixtralConfig(**sizes, **heads, num_experts_per_tok=2).to_dict()
    layer = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (20, 8),
        "lm_head.weight": (20, 8),
        "model.norm.weight": (8,),
        f"{layer}.input_layernorm.weight": (8,),
        f"{layer}.post_attention_layernorm.weight": (8,),
        f"{layer}.self_attn.q_proj.weight": (8, 8),
        f"{layer}.self_attn.k_proj.weight": (4, 8),
        f"{layer}.self_attn.v_proj.weight": (4, 8),
        f"{layer}.self_attn.o_proj.weight": (8, 8),
        f"{layer}.block_sparse_moe.gate.weight": (experts, 8),
    }
    for e in range(experts):
        for name, shape in {"w1": (12, 8), "w2": (8, 12), "w3": (12, 8)}.items():
            shapes[f"{layer}.block_sparse_moe.experts.{e}.{name}.weight"] = shape
    return write_base(path, shapes, {**config, "architectures": ["MixtralForCausalLM"]})


@pytest.mark.parametrize("flat", [False, True])
def test_stacked_experts_change_one_by_one(tmp_path: Path, flat: bool) -> None:
    """LoRASwitchLinear.fuse: weight + (scale * lora_b) @ lora_a, expert by expert."""
    experts = 4
    base = _mixtral(tmp_path / "base", experts)
    weights = load_file(base / "model.safetensors")
    moe = "model.layers.0.block_sparse_moe"
    tensors: Tensors = {}
    changed: Tensors = {}
    for part, hub, (rows, cols) in (("gate_proj", "w1", (12, 8)), ("down_proj", "w2", (8, 12))):
        a, b = rand(experts, RANK, cols), rand(experts, rows, RANK)
        tensors[f"{moe}.switch_mlp.{part}.lora_a"] = a.reshape(-1, cols) if flat else a
        tensors[f"{moe}.switch_mlp.{part}.lora_b"] = b
        delta = (SCALE * b.double()) @ a.double()
        for e in range(experts):
            name = f"{moe}.experts.{e}.{hub}.weight"
            changed[name] = weights[name].double() + delta[e]
    check_merge(base, _write(tmp_path / "adapter", tensors), changed)


def test_more_experts_in_the_base_than_in_the_adapter(tmp_path: Path) -> None:
    base = _mixtral(tmp_path / "base", 4)
    name = "model.layers.0.block_sparse_moe.switch_mlp.gate_proj"
    tensors = {f"{name}.lora_a": rand(3, RANK, 8), f"{name}.lora_b": rand(3, 12, RANK)}
    with pytest.raises(BadInput, match="3 experts"):
        plan(base, _write(tmp_path / "adapter", tensors))


def test_experts_that_the_base_lacks(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    name = "model.layers.0.mlp.switch_mlp.gate_proj"
    tensors = {f"{name}.lora_a": rand(3, RANK, 8), f"{name}.lora_b": rand(3, 12, RANK)}
    with pytest.raises(Unsupported, match="no expert for"):
        plan(base, _write(tmp_path / "adapter", tensors))


def test_any_part_of_a_turned_tensor_reads_alike(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    tensors = _factors({module: (16, 16)})
    opened = open_adapter(_write(tmp_path / "adapter", tensors))
    name = f"base_model.model.{module}.lora_A.weight"
    whole = tensors[f"{module}.lora_a"].T
    assert torch.equal(opened.read(name), whole)
    assert torch.equal(opened.read_rows(name, range(1, 3)), whole[1:3])
    assert torch.equal(opened.read_elements(name, 5, 20), whole.reshape(-1)[5:25])
    assert opened.files == ("adapter_config.json", "adapters.safetensors")
    assert opened.trainer == "mlx-lm"


def test_alpha_is_not_used_and_said_so(tmp_path: Path) -> None:
    parameters = {"rank": RANK, "alpha": 16, "scale": SCALE}
    module = "model.layers.0.self_attn.q_proj"
    path = _write(tmp_path / "a", _factors({module: (16, 16)}), lora_parameters=parameters)
    opened = open_adapter(path)
    assert opened.config["lora_alpha"] == SCALE * RANK
    assert "alpha 16" in opened.notes[0]


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    tensors = _factors({module: (16, 16)})
    tensors[f"{module}.lora_a"][3, 1] = float("nan")
    with pytest.raises(BadInput, match=r"q_proj\.lora_A"):
        check_finite(open_adapter(_write(tmp_path / "a", tensors)))


_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"fine_tune_type": "full"}, {}, "whole weights"),
        ({"fine_tune_type": ["lora"]}, {}, "fine_tune_type"),
        ({"lora_parameters": None}, {}, "rank"),
        ({"lora_parameters": {"rank": True, "scale": 1}}, {}, "rank"),
        ({"lora_parameters": {"rank": RANK}}, {}, "scale"),
        ({"lora_parameters": {"rank": RANK, "scale": float("nan")}}, {}, "scale"),
        ({"lora_parameters": {"rank": RANK, "scale": 10**400}}, {}, "scale"),
        ({"lora_parameters": {"rank": RANK + 1, "scale": 1.0}}, {}, "no factors of rank 4"),
        ({"fine_tune_type": "dora"}, {}, "m are needed"),
        ({}, {f"{_Q}.m": rand(16)}, "lora_a, lora_b are needed"),
        ({}, {f"{_Q}.weight": rand(16, 16)}, "no tensor of a LoRA adapter"),
        ({}, {f"{_Q}.lora_b": rand(RANK, 16, 2)}, "no factors"),
        ({}, {f"{_Q}.lora_b": rand(RANK)}, "no factors"),
        ({}, {f"{_Q}.lora_a": rand(0, RANK)}, "no factors"),
        ({"fine_tune_type": "dora"}, {f"{_Q}.m": rand(15)}, "asks for"),
        ({}, {f"{_Q}.lora_a": torch.ones(16, RANK, dtype=torch.int32)}, "real floats"),
    ],
)
def test_what_cannot_be_right_is_refused(
    tmp_path: Path, config: dict[str, Any], tensors: Tensors, said: str
) -> None:
    path = _write(tmp_path / "a", {**_factors({_Q: (16, 16)}), **tensors}, **config)
    with pytest.raises(BadInput, match=said):
        open_adapter(path)


def test_dora_on_an_embedding_is_refused(tmp_path: Path) -> None:
    tensors = _factors({"model.embed_tokens": (40, 16)})
    tensors["model.embed_tokens.m"] = rand(16)
    with pytest.raises(Unsupported, match="embed_tokens with DoRA"):
        open_adapter(_write(tmp_path / "a", tensors, fine_tune_type="dora"))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a", _factors({_Q: (16, 16)}))
    file = path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"adapters\.safetensors"):
        open_adapter(path)
