"""TinyLoRA and Uni-LoRA: what a layer gets depends on its place in the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TinyLoraConfig, UniLoraConfig

import remerge
from tests.adapters.tuners.against_peft import (
    Tensors,
    assert_independent,
    assert_same,
    edit,
    merge_both,
    our_merged,
    with_name,
)

# In another order than the model's, by name and as listed.
LAYERS = ["k_proj", "down_proj", "v_proj", "gate_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]
DTYPES = [torch.float32, torch.bfloat16]

TINY: list[dict[str, Any]] = [
    {},
    {"weight_tying": 0.5},
    {"weight_tying": 1.0, "save_projection": False},
    {"weight_tying": 0.7, "save_projection": False, "projection_seed": 3},
    {"r": 40, "save_projection": False},
]


@pytest.mark.parametrize("options", TINY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tinylora(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    asked = TinyLoraConfig(**{"r": 3, "u": 5, "target_modules": LAYERS, **options})
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert len(both.changed) == 8
    assert_same(both)
    if not options:
        assert_independent(both, tmp_path)


def test_tinylora_on_other_layers(tmp_path: Path) -> None:
    asked = TinyLoraConfig(r=3, u=5, target_modules=CONV1D)
    assert_same(merge_both(asked, "gpt2", tmp_path / "conv1d"))
    asked = TinyLoraConfig(r=3, u=5, target_modules=["embed_tokens", "q_proj"])
    both = merge_both(asked, "llama", tmp_path / "embedding")
    assert "model.embed_tokens.weight" in both.changed
    assert_same(both)


UNI: list[dict[str, Any]] = [
    {"save_indices": True},
    {},
    {"proj_seed": 3, "theta_d_length": 37},
    {"theta_d_length": 5000, "r": 2},
    {"target_modules": r".*\.(k_proj|down_proj)"},
    {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"]},
]


@pytest.mark.parametrize("options", UNI)
@pytest.mark.parametrize("dtype", DTYPES)
def test_unilora(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    asked = UniLoraConfig(**{"r": 3, "target_modules": LAYERS, **options})
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert_same(both)
    if len(options) < 2:
        assert_independent(both, tmp_path)


@pytest.mark.parametrize("saved", [True, False])
def test_unilora_on_transposed_layers(saved: bool, tmp_path: Path) -> None:
    asked = UniLoraConfig(r=3, target_modules=CONV1D, save_indices=saved)
    assert_same(merge_both(asked, "gpt2", tmp_path))


def test_unilora_beside_whole_modules(tmp_path: Path) -> None:
    asked = UniLoraConfig(r=3, target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    both = merge_both(asked, "llama", tmp_path)
    assert "lm_head.weight" in both.changed
    assert_same(both)


@pytest.mark.parametrize(
    "change",
    [
        {"layers_to_transform": [0]},
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"target_modules": ["mlp"]},
        {"target_modules": ["absent"]},
    ],
)
def test_a_selection_that_cannot_be_told(change: dict[str, Any], tmp_path: Path) -> None:
    both = merge_both(UniLoraConfig(r=3, target_modules=LAYERS), "llama", tmp_path)
    edit(both.adapter_path, **change)
    with pytest.raises(remerge.Unsupported, match="Which modules"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


@pytest.mark.parametrize("change", [{"r": 2**20}, {"proj_seed": -1}, {"theta_d_length": 0}])
def test_absurd_numbers(change: dict[str, Any], tmp_path: Path) -> None:
    both = merge_both(UniLoraConfig(r=3, target_modules=LAYERS), "llama", tmp_path)
    edit(both.adapter_path, **change)
    with pytest.raises(remerge.RemergeError):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


def test_a_model_that_nobody_knows(tmp_path: Path) -> None:
    asked = TinyLoraConfig(r=3, u=5, target_modules=LAYERS)
    both = merge_both(asked, "llama", tmp_path)
    config = (both.base_path / "config.json").read_text()
    base = tmp_path / "unknown"
    base.mkdir()
    shutil.copy(both.base_path / "model.safetensors", base)
    (base / "config.json").write_text(config.replace('"llama"', '"unheard-of"'))
    with pytest.raises(remerge.Unsupported):
        our_merged(base, both.adapter_path, tmp_path / "bad")


CONFIGS: dict[str, Any] = {
    "tinylora_A": TinyLoraConfig(r=3, u=5, target_modules=LAYERS),
    "tinylora_P": TinyLoraConfig(r=3, u=5, target_modules=LAYERS),
    "unilora_indices_B": UniLoraConfig(r=3, target_modules=LAYERS, save_indices=True),
    "unilora_scales_A": UniLoraConfig(r=3, target_modules=LAYERS, save_indices=True),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_keys_and_misfits(part: str, tmp_path: Path) -> None:
    both = merge_both(CONFIGS[part], "llama", tmp_path)
    edit(both.adapter_path, with_name("default", part, "tinylora_v", "unilora_theta_d"))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
    key = f"base_model.model.model.layers.1.mlp.down_proj.{part}.default"
    edit(both.adapter_path, lambda held: held | {key: held[key][..., :-1]})
    with pytest.raises(remerge.RemergeError, match=f"down_proj.{part}"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if n != key})
    with pytest.raises(remerge.RemergeError, match=f"{part} is missing"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_numbers_that_no_layer_uses_and_numbers_that_lack(tmp_path: Path) -> None:
    both = merge_both(CONFIGS["tinylora_A"], "llama", tmp_path)

    def more(held: Tensors) -> Tensors:
        return held | {"base_model.tinylora_v.8": torch.ones(5)}

    edit(both.adapter_path, more)
    with pytest.raises(remerge.RemergeError, match=r"tinylora_v\.8"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    gone = {"base_model.tinylora_v.8", "base_model.tinylora_v.3"}
    edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if n not in gone})
    with pytest.raises(remerge.RemergeError, match=r"v\.3"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


def test_indices_outside_of_the_vector(tmp_path: Path) -> None:
    both = merge_both(CONFIGS["unilora_indices_B"], "llama", tmp_path)
    key = "base_model.model.model.layers.0.mlp.down_proj.unilora_indices_B"

    def moved(held: Tensors) -> Tensors:
        held[key][1, 1] = 256
        return held

    edit(both.adapter_path, moved)
    with pytest.raises(remerge.BadInput, match="unilora_indices_B"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
