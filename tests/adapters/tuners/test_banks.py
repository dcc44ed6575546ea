"""VB-LoRA and RandLoRA: factors made of what all layers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import RandLoraConfig, VBLoRAConfig

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

LAYERS = ["q_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vblora(dtype: torch.dtype, top: bool, tmp_path: Path) -> None:
    asked = VBLoRAConfig(
        r=3,
        num_vectors=9,
        vector_length=4,
        topk=3,
        target_modules=LAYERS,
        save_only_topk_weights=top,
        init_vector_bank_bound=0.2,
    )
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert len(both.changed) == 8
    assert_same(both)
    ends = [f"vblora_{part}" for part in ("logits_A", "logits_B", "vector_bank")]
    if top:
        ends = []
        edit(both.adapter_path, _name_before_topk)
    edit(both.adapter_path, with_name("default", *ends))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())


def _name_before_topk(tensors: Tensors) -> Tensors:
    return {name.replace("_topk", ".default_topk"): value for name, value in tensors.items()}


@pytest.mark.parametrize("top", [True, False])
def test_vblora_on_transposed_layers(top: bool, tmp_path: Path) -> None:
    asked = VBLoRAConfig(
        r=3,
        num_vectors=9,
        vector_length=8,
        topk=1,
        target_modules=["c_attn", "c_proj"],
        save_only_topk_weights=top,
    )
    assert_same(merge_both(asked, "gpt2", tmp_path))


Q = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vblora_logits_A_topk_indices", lambda value: value + 250),
        ("vblora_logits_A_topk_indices", lambda value: value.float()),
        ("vblora_logits_A_topk_indices", lambda value: value[:-1]),
        ("vblora_logits_B_topk_weights", lambda value: value[:-1]),
        ("vblora_logits_B_topk_weights", None),
    ],
)
def test_vblora_misfits(part: str, change: Any, tmp_path: Path) -> None:
    asked = VBLoRAConfig(
        r=3, num_vectors=9, vector_length=4, target_modules=LAYERS, save_only_topk_weights=True
    )
    both = merge_both(asked, "llama", tmp_path)
    if change is None:
        edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if n != Q + part})
    else:
        edit(both.adapter_path, lambda held: held | {Q + part: change(held[Q + part])})
    with pytest.raises(remerge.BadInput, match=part):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("key", [f"{Q}randlora_{part}" for part in ("lambda", "gamma", "A", "B")])
def test_randlora_misfits(key: str, tmp_path: Path) -> None:
    both = merge_both(RandLoraConfig(r=7, target_modules=LAYERS), "llama", tmp_path, noise=0.03)
    edit(both.adapter_path, lambda held: held | {key: held[key][:-1]})
    with pytest.raises(remerge.BadInput, match=key):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


RANDOM: list[dict[str, Any]] = [
    {},
    {"save_projection": False, "projection_prng_key": 3},
    {"save_projection": False, "sparse": True, "randlora_alpha": 9},
    {"save_projection": False, "very_sparse": True},
]


@pytest.mark.parametrize("options", RANDOM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_randlora(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    asked = RandLoraConfig(r=7, target_modules=LAYERS, **options)
    both = merge_both(asked, "llama", tmp_path, dtype, noise=0.03)
    assert len(both.changed) == 8
    assert_same(both, equal=0.5, rounds_delta=1)
    if not options:
        assert_independent(both, tmp_path)


def test_randlora_on_transposed_layers(tmp_path: Path) -> None:
    asked = RandLoraConfig(r=5, target_modules=["c_attn", "c_fc", "c_proj"])
    assert_same(merge_both(asked, "gpt2", tmp_path, noise=0.03))


def test_randlora_with_the_adapters_name_in_keys(tmp_path: Path) -> None:
    both = merge_both(RandLoraConfig(r=7, target_modules=LAYERS), "llama", tmp_path, noise=0.03)
    ends = [f"randlora_{part}" for part in ("lambda", "gamma", "A", "B")]
    edit(both.adapter_path, with_name("default", *ends))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
