"""Every obstacle of rules.yaml is found by what a trainer writes, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from remerge.adapters.adapter import open_adapter
from remerge.advice.obstacles import obstacles_of, obstacles_of_base
from remerge.advice.rules import rules
from tests import tiny

SAID: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ()),
    ({"use_rslora": True, "use_dora": False, "modules_to_save": None, "bias": "none"}, ()),
    ({"init_lora_weights": "gaussian", "rank_pattern": {}, "alpha_pattern": {}}, ()),
    ({"use_dora": True}, ("dora",)),
    ({"modules_to_save": ["lm_head"]}, ("modules-to-save",)),
    ({"trainable_token_indices": [1, 2]}, ("trained-tokens",)),
    ({"bias": "lora_only"}, ("biases",)),
    ({"lora_bias": True}, ("biases",)),
    ({"target_parameters": ["mlp.experts.down_proj"]}, ("stacked-experts",)),
    ({"init_lora_weights": "PiSSA"}, ("residual-base",)),
    ({"init_lora_weights": "olora"}, ("residual-base",)),
    ({"alpha_pattern": {"q_proj": 8}}, ("alpha-by-module",)),
    ({"rank_pattern": {"q_proj": 8}}, ("rank-by-module",)),
    ({"r": 1024}, ("large-rank",)),
    ({"peft_type": "LOHA"}, ("other-family",)),
]


@pytest.mark.parametrize(("values", "found"), SAID, ids=str)
def test_configurations(tmp_path: Path, values: dict[str, Any], found: tuple[str, ...]) -> None:
    tiny.write_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    assert obstacles_of(open_adapter(tmp_path / "adapter")) == found


def test_embeddings_that_come_along(tmp_path: Path) -> None:
    """As PEFT saves them where the vocabulary was resized, without a word in the configuration."""
    tiny.write_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = {"base_model.model.model.embed_tokens.weight": torch.ones(211, 8)}
    save_file({**load_file(file), **whole}, file)
    assert obstacles_of(open_adapter(tmp_path / "adapter")) == ("whole-tensors",)


def test_bases() -> None:
    for method, found in (("bitsandbytes", ("bitsandbytes-base",)), ("gptq", ()), ("fp8", ())):
        config = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
        assert obstacles_of_base(config) == found
    assert obstacles_of_base({}) == ()


def test_none_is_without_a_test() -> None:
    tested = {name for _, names in SAID for name in names}
    assert rules().obstacles.keys() == tested | {
        "whole-tensors",
        "bitsandbytes-base",
        "other-trainer",
    }
