"""DeLoRA and DEFT: changes bounded by the base, or within a subspace of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import DeftConfig, DeloraConfig

import remerge
from tests.adapters.tuners.against_peft import (
    assert_independent,
    assert_same,
    edit,
    merge_both,
    our_merged,
    with_name,
)

LAYERS = ["q_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delora(dtype: torch.dtype, tmp_path: Path) -> None:
    asked = DeloraConfig(
        r=5,
        delora_lambda=3,
        rank_pattern={"down_proj": 3},
        lambda_pattern={"q_proj": 7},
        target_modules=LAYERS,
    )
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert len(both.changed) == 8
    assert_same(both, equal=0.5, rounds_delta=1)
    assert_independent(both, tmp_path)


DEFTS: list[dict[str, Any]] = [
    {},
    {"decomposition_method": "qr", "alpha": 12},
    {"decomposition_method": "qr", "para": True},
    {"para": True},
    {"r": 70, "init_weights": False},
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", DEFTS)
def test_deft(options: dict[str, Any], kind: str, tmp_path: Path) -> None:
    layers = LAYERS if kind == "llama" else ["c_attn", "c_fc", "c_proj"]
    asked = DeftConfig(**{"r": 5, **options}, target_modules=layers)
    both = merge_both(asked, kind, tmp_path)
    assert_same(both)
    assert_independent(both, tmp_path)


@pytest.mark.parametrize("method", ["relu", "qr"])
def test_deft_in_16_bits(method: Any, tmp_path: Path) -> None:
    asked = DeftConfig(r=5, decomposition_method=method, target_modules=LAYERS)
    both = merge_both(asked, "llama", tmp_path, torch.bfloat16)
    assert_same(both, equal=0.5, rounds_delta=1)


CONFIGS: dict[str, Any] = {
    "delora_A": DeloraConfig(r=5, target_modules=LAYERS),
    "delora_w_norm": DeloraConfig(r=5, target_modules=LAYERS),
    "deft_P": DeftConfig(r=5, target_modules=LAYERS),
    "deft_R": DeftConfig(r=5, target_modules=LAYERS),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_keys_and_misfits(part: str, tmp_path: Path) -> None:
    both = merge_both(CONFIGS[part], "llama", tmp_path)
    edit(both.adapter_path, with_name("default", part))
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


def test_an_injection_that_para_has_no_use_for(tmp_path: Path) -> None:
    both = merge_both(CONFIGS["deft_R"], "llama", tmp_path)
    edit(both.adapter_path, para=True)
    with pytest.raises(remerge.RemergeError, match="deft_R"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
