"""BEFT, Super-Tuning and PEANuT: biases, single places, and a network over the weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import BeftConfig, PeanutConfig, SupertuningConfig

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beft(dtype: torch.dtype, tmp_path: Path) -> None:
    both = merge_both(BeftConfig(target_modules=["fc1", "q_proj"]), "whisper", tmp_path, dtype)
    assert {name.rpartition(".")[2] for name in both.changed} == {"bias"}
    assert_same(both)


def test_beft_without_a_bias_is_refused(tmp_path: Path) -> None:
    both = merge_both(BeftConfig(target_modules=["fc1"]), "whisper", tmp_path)
    old, new = "model.encoder.layers.0.fc1", "model.encoder.layers.0.self_attn.k_proj"
    edit(
        both.adapter_path,
        lambda held: {n.replace(old, new): v[:, :16] if old in n else v for n, v in held.items()},
    )
    with pytest.raises(remerge.Unsupported, match="k_proj"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


@pytest.mark.parametrize("options", [{}, {"r": 3, "lora_alpha": 5.0}, {"select_top": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_supertuning(dtype: torch.dtype, options: dict[str, Any], tmp_path: Path) -> None:
    asked = SupertuningConfig(target_modules=LAYERS, sparsity=0.8, **options)
    both = merge_both(asked, "llama", tmp_path, dtype, noise=0.02)
    # PEFT rounds the numbers and the low-rank change to 16 bits, and the sum after each of them.
    assert_same(both, equal=0.7, units=2, rounds_delta=1)
    assert_independent(both, tmp_path)


def test_places_outside_of_the_weight(tmp_path: Path) -> None:
    both = merge_both(SupertuningConfig(target_modules=LAYERS, sparsity=0.8), "llama", tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.supertuning_indices"
    for place in (-1, 24 * 24):

        def moved(held: Tensors, place: int = place) -> Tensors:
            held[key][3] = place
            return held

        edit(both.adapter_path, moved)
        with pytest.raises(remerge.BadInput, match=r"q_proj\.supertuning_indices"):
            our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
        assert not (tmp_path / "bad").exists()
    edit(both.adapter_path, lambda held: held | {key: held[key].float()})
    with pytest.raises(remerge.BadInput, match="integers"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


def test_places_that_were_not_saved_are_refused(tmp_path: Path) -> None:
    asked = SupertuningConfig(target_modules=LAYERS, sparsity=0.8)
    both = merge_both(asked, "llama", tmp_path)
    edit(both.adapter_path, save_precomputed_indices=False)
    with pytest.raises(remerge.Unsupported, match="save_precomputed_indices"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


@pytest.mark.parametrize(
    ("depth", "act"), [(0, "relu"), (2, "gelu"), (1, "silu"), (3, "tanh"), (1, "prelu")]
)
def test_peanut(depth: int, act: str, tmp_path: Path) -> None:
    asked = PeanutConfig(r=5, depth=depth, act_fn=act, scaling=0.7, target_modules=LAYERS)
    both = merge_both(asked, "llama", tmp_path)
    assert_same(both)
    assert_independent(both, tmp_path)


def test_peanut_in_16_bits(tmp_path: Path) -> None:
    asked = PeanutConfig(r=5, depth=1, target_modules=LAYERS)
    both = merge_both(asked, "llama", tmp_path, torch.bfloat16)
    assert_same(both, equal=0.5, rounds_delta=1)


def test_an_activation_that_does_not_exist(tmp_path: Path) -> None:
    both = merge_both(PeanutConfig(r=5, target_modules=LAYERS), "llama", tmp_path)
    edit(both.adapter_path, act_fn="none-such")
    with pytest.raises(remerge.Unsupported, match="none-such"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


CONFIGS: dict[str, Any] = {
    "supertuning_values": SupertuningConfig(target_modules=LAYERS, sparsity=0.8),
    "supertuning_lora_A": SupertuningConfig(
        target_modules=LAYERS, sparsity=0.8, r=2, lora_alpha=2.0
    ),
    "peanut_A": PeanutConfig(r=5, depth=2, target_modules=LAYERS),
    "peanut_encoders": PeanutConfig(r=5, depth=2, target_modules=LAYERS),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_keys_and_misfits(part: str, tmp_path: Path) -> None:
    both = merge_both(CONFIGS[part], "llama", tmp_path)
    edit(both.adapter_path, with_name("default", part))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
    start = f"base_model.model.model.layers.1.mlp.down_proj.{part}.default"

    def cut(held: Tensors) -> Tensors:
        return {n: v[:-1] if n.startswith(start) else v for n, v in held.items()}

    edit(both.adapter_path, cut)
    with pytest.raises(remerge.RemergeError, match=f"down_proj.{part}"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if not n.startswith(start)})
    with pytest.raises(remerge.RemergeError, match=f"{part}.* is missing"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
