"""Adapters of other trainers through the whole command: resolved, merged, written and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge

from .place import HEAD, HEADS, HIDDEN, Tensors, rand, write_adapter, write_base, write_llama

Q = "model.layers.0.self_attn.q_proj.weight"
RANK, ALPHA = 3, 2.0


def _merge(base: Path, adapter: Path, out: Path) -> Tensors:
    result = remerge.merge(base, adapter, out)
    remerge.verify(out)
    assert any(record.name.endswith(".safetensors") for record in result.manifest.adapters[0].files)
    found: Tensors = {}
    for file in out.glob("*.safetensors"):
        found |= load_file(file)
    return found


def _check(found: torch.Tensor, base: torch.Tensor, change: torch.Tensor) -> None:
    wanted = base.double() + change.double()
    torch.testing.assert_close(found, wanted.float(), rtol=2e-7, atol=1e-8)
    assert not torch.equal(found, base)


def test_mlx(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    a, b = rand(HIDDEN, RANK), rand(RANK, HIDDEN, seed=1)
    stem = Q.removesuffix(".weight")
    adapter = write_adapter(
        tmp_path / "adapter",
        "adapters.safetensors",
        {f"{stem}.lora_a": a, f"{stem}.lora_b": b},
        {
            "fine_tune_type": "lora",
            "num_layers": 2,
            "lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0},
        },
    )
    found = _merge(base, adapter, tmp_path / "out")
    change = 20.0 * (a.double() @ b.double()).T
    _check(found[Q], load_file(base / "model.safetensors")[Q], change)


def test_torchtune(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    a, b = rand(RANK, HIDDEN), rand(HIDDEN, RANK, seed=1)
    stem = "layers.0.attn.q_proj"
    adapter = write_adapter(
        tmp_path / "adapter",
        "adapter_0.safetensors",
        {f"{stem}.lora_a.weight": a, f"{stem}.lora_b.weight": b},
        {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "peft_type": "LORA"},
    )
    found = _merge(base, adapter, tmp_path / "out")
    # torchtune turns pairs of neighbours, Hugging Face halves of a head.
    order = torch.arange(HIDDEN).view(HEADS, HEAD // 2, 2).transpose(1, 2).reshape(-1)
    change = ALPHA / RANK * (b.double()[order] @ a.double())
    _check(found[Q], load_file(base / "model.safetensors")[Q], change)


@pytest.fixture(params=["one file", "shards"])
def component(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A diffusers component: no model type, its own file names, convolutions."""
    shapes = {
        "down_blocks.0.attentions.0.to_q.weight": (6, 6),
        "down_blocks.0.attentions.0.to_q.bias": (6,),
        "down_blocks.0.resnets.0.conv1.weight": (4, 3, 3, 3),
        "mid_block.norm.weight": (6,),
    }
    path = write_base(tmp_path / "unet", shapes, {"_class_name": "UNet2DConditionModel"})
    values = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    stem = "diffusion_pytorch_model"
    if request.param == "one file":
        save_file(values, path / f"{stem}.safetensors")
        return path
    weight_map: dict[str, str] = {}
    for number, name in enumerate(values, 1):
        weight_map[name] = f"{stem}-{number:05d}-of-00004.safetensors"
        save_file({name: values[name]}, path / weight_map[name])
    document: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / f"{stem}.safetensors.index.json").write_text(json.dumps(document))
    return path


def test_kohya_onto_a_diffusers_component(component: Path, tmp_path: Path) -> None:
    q, conv = "down_blocks.0.attentions.0.to_q", "down_blocks.0.resnets.0.conv1"
    tensors: Tensors = {}
    for module, down, up in (
        (q, rand(RANK, 6), rand(6, RANK)),
        (conv, rand(RANK, 3, 3, 3), rand(4, RANK, 1, 1)),
    ):
        key = "lora_unet_" + module.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    adapter = write_adapter(tmp_path / "lora", "style.safetensors", tensors)
    before: Tensors = {}
    for file in component.glob("*.safetensors"):
        before |= load_file(file)
    found = _merge(component, adapter, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in component.iterdir()} <= names
    for module in (q, conv):
        key = "lora_unet_" + module.replace(".", "_")
        down, up = (tensors[f"{key}.lora_{part}.weight"].double() for part in ("down", "up"))
        change = ALPHA / RANK * (up.flatten(1) @ down.flatten(1))
        weight = f"{module}.weight"
        _check(found[weight], before[weight], change.view(before[weight].shape))
    assert torch.equal(found["mid_block.norm.weight"], before["mid_block.norm.weight"])


def test_expert_packing_is_asked_for(tmp_path: Path) -> None:
    """The same factors, read one way and the other."""
    experts, inner = 3, 8
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (40, HIDDEN),
        "lm_head.weight": (40, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    layer = "model.layers.0"
    for projection, rows in (("q", HIDDEN), ("k", 8), ("v", 8), ("o", HIDDEN)):
        columns = HIDDEN
        shapes[f"{layer}.self_attn.{projection}_proj.weight"] = (rows, columns)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{layer}.{norm}.weight"] = (HIDDEN,)
    shapes[f"{layer}.block_sparse_moe.gate.weight"] = (experts, HIDDEN)
    for expert in range(experts):
        stem = f"{layer}.block_sparse_moe.experts.{expert}"
        shapes |= {f"{stem}.w1.weight": (inner, HIDDEN), f"{stem}.w3.weight": (inner, HIDDEN)}
        shapes[f"{stem}.w2.weight"] = (HIDDEN, inner)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": HIDDEN,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": experts,
        "vocab_size": 40,
        "tie_word_embeddings": False,
    }
    base = write_base(tmp_path / "base", shapes, config)
    a, b = rand(RANK * experts, inner), rand(HIDDEN, RANK * experts, seed=1)
    key = f"base_model.model.{layer}.mlp.experts"
    adapter = write_adapter(
        tmp_path / "adapter",
        "adapter_model.safetensors",
        {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b},
        {
            "peft_type": "LORA",
            "peft_version": "0.21.2",
            "r": RANK,
            "lora_alpha": RANK,
            "target_modules": [],
            "target_parameters": ["mlp.experts.down_proj"],
            "task_type": "CAUSAL_LM",
        },
    )
    before = load_file(base / "model.safetensors")
    for packing in ("rank-major", "expert-major"):
        out = tmp_path / packing
        remerge.merge(base, adapter, out, expert_packing=packing)
        remerge.verify(out)
        found = load_file(out / "model.safetensors")
        wide = b.double()
        columns = (
            wide.reshape(HIDDEN, RANK, experts).permute(2, 0, 1)
            if packing == "rank-major"
            else wide.reshape(HIDDEN, experts, RANK).permute(1, 0, 2)
        )
        for expert in range(experts):
            name = f"{layer}.block_sparse_moe.experts.{expert}.w2.weight"
            rows = a.double().reshape(experts, RANK, inner)[expert]
            _check(found[name], before[name], columns[expert] @ rows)
