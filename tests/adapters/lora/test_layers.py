"""Every kind of layer and of plain low-rank option, against PEFT's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from .models import Attention, Everything, Mixture
from .oracle import check_module

LINEAR = ["linear", "square", "conv1d_linear", "square_conv1d"]
CONV = ["conv1", "conv2", "conv2_point", "conv3"]
ALL = [*LINEAR, *CONV, "embedding"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 5},
        {"lora_alpha": 0},
        {"lora_alpha": -3},
        {"rank_pattern": {"linear": 2, "conv.*": 6}, "alpha_pattern": {".*square": 7, "square": 1}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"use_dora": True},
    ],
    ids=str,
)
def test_layers(options: dict[str, Any], tmp_path: Path) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": ALL} | options)
    if options.get("lora_alpha") == 0:
        with pytest.raises(AssertionError, match="changed nothing"):
            check_module(Everything(), config, tmp_path)
        return
    changes = check_module(Everything(), config, tmp_path)
    assert len(changes.tensors) == len(ALL)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_bias": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"bias": "all", "modules_to_save": ["norm", "square"]},
        {"modules_to_save": ["norm", "conv2"]},
    ],
    ids=str,
)
def test_biases_and_saved_modules(options: dict[str, Any], tmp_path: Path) -> None:
    saved = options.get("modules_to_save", [])
    targets = [name for name in LINEAR + CONV if name not in saved]
    check_module(Everything(), LoraConfig(r=4, target_modules=targets, **options), tmp_path)


@pytest.mark.parametrize("init", ["orthogonal", "mica"])
def test_inits_that_leave_the_base_alone(init: str, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["linear", "square"], init_lora_weights=init)
    check_module(Everything(), config, tmp_path)


def test_attention_changes_its_output_projection_twice(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["attn"], alpha_pattern={"attn": 3})
    changes = check_module(Attention(), config, tmp_path)
    assert set(changes.tensors) == {"attn.in_proj_weight", "attn.out_proj.weight"}
    assert any("twice" in note for note in changes.notes)


def test_output_projection_of_attention_alone_is_merged_once(tmp_path: Path) -> None:
    """What all-linear targets; torch's attention never calls it, so B stays zero in training."""
    check_module(Attention(), LoraConfig(r=4, target_modules=["out_proj"]), tmp_path)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "targets",
    [["gate_up_proj"], ["down_proj"], ["gate_up_proj", "down_proj"]],
    ids=lambda names: "+".join(names),
)
def test_stacked_experts(targets: list[str], transposed: bool, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=[f"experts.{name}" for name in targets],
        rank_pattern={"experts.down_proj": 3},
    )
    changes = check_module(Mixture(transposed), config, tmp_path)
    assert len(changes.tensors) == len(targets)


def test_three_parameters_of_one_module(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj", "experts.gate"],
    )
    check_module(Mixture(), config, tmp_path)
