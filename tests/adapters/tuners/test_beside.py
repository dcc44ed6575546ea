"""What an adapter brings beside its own kind of change: biases, whole modules, other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    RoadConfig,
)
from safetensors.torch import load_file

import remerge
from remerge.adapters.names import direct_names
from tests.adapters.tuners.against_peft import (
    assert_refused,
    assert_same,
    edit,
    merge_both,
    save_trained,
)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (OFTConfig, {"oft_block_size": 4, "bias": "all"}),
        (OFTConfig, {"oft_block_size": 4, "bias": "oft_only"}),
        (BOFTConfig, {"boft_block_size": 4, "bias": "boft_only"}),
        (HRAConfig, {"r": 2, "bias": "hra_only"}),
        (MissConfig, {"r": 4, "bias": "MiSS_only"}),
        (IA3Config, {"feedforward_modules": [], "modules_to_save": ["layer_norm"]}),
        (RoadConfig, {"group_size": 4, "modules_to_save": ["conv1"]}),
        (LoHaConfig, {"r": 2, "modules_to_save": ["fc2"]}),
    ],
    ids=str,
)
def test_biases_and_whole_modules(form: Any, options: dict[str, Any], tmp_path: Path) -> None:
    both = merge_both(form(target_modules=["fc1", "q_proj"], **options), "whisper", tmp_path)
    assert_same(both)
    if "bias" in options or "modules_to_save" in options:
        assert any(not name.endswith(("fc1.weight", "q_proj.weight")) for name in both.changed)


def test_names_that_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def watched(tensors: Any) -> Any:
        asked.append(tensors)
        return direct_names(tensors)

    monkeypatch.setattr("remerge.adapters.names.direct_names", watched)
    both = merge_both(LoHaConfig(r=2, target_modules=["up_proj"]), "llama", tmp_path)
    assert_same(both)
    assert asked


@pytest.mark.parametrize(
    "config",
    [
        OFTConfig(target_modules=["q_proj"], oft_block_size=4),
        MissConfig(target_modules=["q_proj"], r=4),
        LoHaConfig(target_modules=["q_proj"], r=2),
    ],
    ids=lambda config: config.peft_type,
)
def test_a_layer_that_the_base_lacks(config: PeftConfig, tmp_path: Path) -> None:
    saved = save_trained(config, "llama", tmp_path)
    file = saved.adapter_path / "adapter_model.safetensors"
    # Names in the header, of one length.
    file.write_bytes(file.read_bytes().replace(b"layers.1.self_attn", b"layers.7.self_attn"))
    assert_refused(saved, tmp_path, "layers.7.self_attn.q_proj")


@pytest.mark.parametrize(
    "config",
    [
        HRAConfig(target_modules=["q_proj", "v_proj"], r=2),
        LoHaConfig(target_modules=["q_proj", "v_proj"], r=2),
        LoHaConfig(
            target_modules=["q_proj", "v_proj"],
            exclude_modules=["model.layers.0.self_attn.q_proj"],
            r=2,
        ),
    ],
    ids=["hra", "loha", "one excluded"],
)
def test_a_target_without_tensors_is_told(config: PeftConfig, tmp_path: Path) -> None:
    saved = save_trained(config, "llama", tmp_path)
    whole = remerge.plan(saved.base_path, saved.adapter_path)
    assert not whole.notes
    lost = "model.layers.1.self_attn.v_proj"
    edit(saved.adapter_path, lambda held: {n: v for n, v in held.items() if lost not in n})
    partly = remerge.plan(saved.base_path, saved.adapter_path)
    wanted = 4 - bool(config.exclude_modules)
    assert f"no tensors for 1 of the {wanted} modules" in partly.notes[0]
    assert f"({lost})" in partly.notes[0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("end", ["hada_w1_a", "input_layernorm.weight"])
def test_codes_are_no_weights(end: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = LoHaConfig(target_modules=["q_proj"], r=2, modules_to_save=["input_layernorm"])
    saved = save_trained(config, "llama", tmp_path)
    name = next(n for n in load_file(saved.adapter_path / "adapter_model.safetensors") if end in n)
    edit(saved.adapter_path, lambda held: {**held, name: held[name].mul(10).to(dtype)})
    assert_refused(saved, tmp_path, name, "dtype", "floats")
