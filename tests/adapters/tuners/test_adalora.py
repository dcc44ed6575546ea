from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig

from tests.adapters.tuners.against_peft import (
    assert_independent,
    assert_name_may_stay,
    assert_refused,
    assert_same,
    edit,
    merge_both,
    save_trained,
)

DTYPES = (torch.float32, torch.bfloat16)
Q = "base_model.model.model.layers.0.self_attn.q_proj."


def config(targets: list[str], **options: object) -> AdaLoraConfig:
    return AdaLoraConfig(target_modules=targets, total_step=10, **({"init_r": 4} | options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj"]),
        ("resnet", ["convolution"]),
    ],
)
def test_as_peft(kind: str, targets: list[str], dtype: torch.dtype, tmp_path: Path) -> None:
    both = merge_both(config(targets, lora_alpha=5), kind, tmp_path, dtype)
    assert_same(both)
    if dtype == torch.float32:
        assert_independent(both, tmp_path)


@pytest.mark.parametrize("alpha", [0, 3])
def test_ranks_that_the_allocator_left(alpha: int, tmp_path: Path) -> None:
    kept = {
        f"model.layers.{layer}.self_attn.q_proj.lora_E": pattern
        for layer, pattern in enumerate([[True, False, True, False], [False, False, True, False]])
    }
    both = merge_both(
        config(["q_proj", "v_proj"], lora_alpha=alpha, rank_pattern=kept), "llama", tmp_path
    )
    assert_same(both)


def test_a_layer_without_a_rank_stays_as_it_is(tmp_path: Path) -> None:
    kept = {"model.layers.0.self_attn.q_proj.lora_E": [False] * 4}
    both = merge_both(config(["q_proj"], rank_pattern=kept), "llama", tmp_path)
    assert_same(both)
    assert both.changed == {"model.layers.1.self_attn.q_proj.weight"}


def test_the_adapters_name_left_in_keys(tmp_path: Path) -> None:
    both = merge_both(config(["q_proj"]), "llama", tmp_path)
    assert_name_may_stay(both, tmp_path, "lora_A", "lora_B", "lora_E")


@pytest.mark.parametrize(
    ("end", "value", "words"),
    [
        ("lora_E", None, ["lora_E is missing"]),
        ("lora_B", torch.ones(23, 4), ["(23, 4)", "(24, 24)"]),
        ("lora_A", torch.ones(3, 24), ["(3, 24)", "rank 4"]),
        ("lora_A", torch.ones(0), ["(0,)"]),
        ("lora_F", torch.ones(4), ["lora_F"]),
    ],
)
def test_misfits(end: str, value: torch.Tensor | None, words: list[str], tmp_path: Path) -> None:
    saved = save_trained(config(["q_proj"]), "llama", tmp_path)
    rest = {} if value is None else {Q + end: value}
    edit(saved.adapter_path, lambda t: {n: v for n, v in t.items() if n != Q + end} | rest)
    assert_refused(saved, tmp_path, Q, *words)
