"""VeRA and PVeRA: shared random matrices, stored or drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PveraConfig, VeraConfig

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
CONFIGS = {VeraConfig: "vera", PveraConfig: "pvera"}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_llama(config: Any, dtype: torch.dtype, saved: bool, tmp_path: Path) -> None:
    asked = config(r=6, target_modules=LAYERS, save_projection=saved, projection_prng_key=5)
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert len(both.changed) == 8
    assert_same(both)
    if dtype == torch.bfloat16:
        assert_independent(both, tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
def test_transposed_layers(config: Any, tmp_path: Path) -> None:
    asked = config(r=6, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    assert_same(merge_both(asked, "gpt2", tmp_path))


def test_trained_biases(tmp_path: Path) -> None:
    asked = VeraConfig(r=4, target_modules=["c_attn"], bias="vera_only", fan_in_fan_out=True)
    both = merge_both(asked, "gpt2", tmp_path)
    assert "transformer.h.0.attn.c_attn.bias" in both.changed
    assert_same(both)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_adapters_name_in_keys(config: Any, tmp_path: Path) -> None:
    both = merge_both(config(r=6, target_modules=LAYERS), "llama", tmp_path)
    prefix = CONFIGS[config]
    ends = [f"{prefix}_{part}" for part in ("lambda_b", "lambda_d", "A", "B")]
    edit(both.adapter_path, with_name("default", *ends))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())


def test_the_means_of_a_sampling_adapter_are_noted(tmp_path: Path) -> None:
    asked = PveraConfig(r=6, target_modules=LAYERS, sample_at_inference=True)
    both = merge_both(asked, "llama", tmp_path)
    assert_same(both)
    planned = remerge.plan(both.base_path, both.adapter_path)
    assert any("samples" in note for note in planned.notes)


Q = "base_model.model.model.layers.0.self_attn.q_proj.vera_lambda_"


def _without(name: str) -> Any:
    return lambda tensors: {n: v for n, v in tensors.items() if n != name}


def _cut(name: str) -> Any:
    return lambda tensors: tensors | {name: tensors[name][:-1]}


def _more(tensors: Tensors) -> Tensors:
    return tensors | {f"{Q}x": torch.ones(3)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without(f"{Q}b"), f"{Q}d"),
        (_cut(f"{Q}b"), f"{Q}b"),
        (_cut(f"{Q}d"), f"{Q}d"),
        (_cut("base_model.vera_A"), "base_model.vera_A"),
        (_cut("base_model.vera_B"), "base_model.vera_B"),
        (_without("base_model.vera_A"), "_A"),
        (_more, f"{Q}x"),
    ],
)
def test_misfits(change: Any, named: str, tmp_path: Path) -> None:
    both = merge_both(VeraConfig(r=6, target_modules=LAYERS), "llama", tmp_path)
    edit(both.adapter_path, change)
    with pytest.raises(remerge.RemergeError, match=named):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
