"""transformers models whose checkpoints differ from them in memory, names and all."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from . import models
from .oracle import applied, assert_same, changes_of, check_model, merged_model, save_base, trained


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_llama_all_linear(tied: bool, dora: bool, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    check_model(models.llama(tied), config, tmp_path)


def test_conv1d_layers_are_told_by_their_class(tmp_path: Path) -> None:
    targets = ["c_attn", "c_proj", "c_fc"]
    check_model(models.gpt2(), LoraConfig(r=4, target_modules=targets), tmp_path)


def test_fused_in_both(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["qkv_proj", "gate_up_proj"], use_dora=True)
    check_model(models.phi3(), config, tmp_path)


@pytest.mark.parametrize(
    "names", [["gate_up_proj"], ["gate_up_proj", "down_proj"], ["down_proj", "gate.weight"]]
)
def test_stacked_experts_on_a_checkpoint_with_one_tensor_each(
    names: list[str], tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names)
    _, changes, _ = check_model(models.qwen3_moe(), config, tmp_path)
    assert any("experts.3." in name for name in changes.tensors) or names == ["gate.weight"]


def test_transposed_square_experts(tmp_path: Path) -> None:
    names = ["gate_up_proj", "down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names)
    check_model(models.gpt_oss(), config, tmp_path)


def test_adapter_of_older_transformers_with_one_module_per_expert(tmp_path: Path) -> None:
    """Every matrix of every expert apart, and a router that was a Linear then."""
    model = models.qwen3_moe()
    base = save_base(model, tmp_path / "base")
    one = {"gate_proj": (12, 16), "up_proj": (12, 16), "down_proj": (16, 12)}
    shapes = {f"experts.{e}.{name}": shape for e in range(4) for name, shape in one.items()}
    shapes["gate"] = (4, 16)
    tensors, expected = {}, {n: v.clone() for n, v in base.values.items()}
    for layer in range(2):
        for name, (out, inner) in shapes.items():
            module = f"model.layers.{layer}.mlp.{name}"
            a, b = torch.randn(2, inner), torch.randn(out, 2)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
            expected[f"{module}.weight"] += 4.0 * b @ a
    _write(tmp_path, tensors, {"r": 2, "target_modules": [*one, "gate"]})
    assert_same(applied(base, changes_of(base, tmp_path / "adapter")), expected)


def test_adapter_names_left_in_keys_and_no_prefix(tmp_path: Path) -> None:
    model = models.llama()
    base = save_base(model, tmp_path / "base")
    trained(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    theirs, _ = merged_model(copy.deepcopy(model), tmp_path / "adapter", tmp_path / "peft")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(file)
    for rename in (
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    ):
        save_file({rename(key): value for key, value in stored.items()}, file)
        assert_same(applied(base, changes_of(base, tmp_path / "adapter")), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_to_the_last_place(dtype: torch.dtype, tmp_path: Path) -> None:
    model = models.llama().to(dtype)
    base = save_base(model, tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    trained(copy.deepcopy(model), config, tmp_path / "adapter", scale=0.05)
    ours = applied(base, changes_of(base, tmp_path / "adapter"))
    theirs, _ = merged_model(copy.deepcopy(model), tmp_path / "adapter", tmp_path / "peft")
    for name, value in theirs.items():
        assert ours[name].dtype == dtype
        steps = (ours[name].view(torch.int16).int() - value.view(torch.int16).int()).abs()
        assert (steps <= 1).all() and (steps > 0).float().mean() < 0.01


def _write(tmp: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    out = tmp / "adapter"
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
