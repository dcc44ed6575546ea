"""Adapters trained on a base that their initialisation changed, and block-diagonal ones."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from remerge.adapters.lora.residual import Residual

from . import models
from .oracle import (
    Base,
    ModuleNames,
    applied,
    changes_of,
    check_model,
    check_module,
    merged_module,
    trained,
)

LINEAR = ["linear", "square"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_residual_is_derived_again(init: str, rslora: bool, dora: bool, tmp_path: Path) -> None:
    targets = [*LINEAR, "conv1d_linear", "square_conv1d"] if init == "pissa" else LINEAR
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        init_lora_weights=init,
        use_rslora=rslora,
        use_dora=dora,
    )
    changes = check_module(models.Everything(), config, tmp_path)
    steps = changes.tensors["linear.weight"].steps
    assert isinstance(steps[0], Residual)
    assert steps[0].bytes_needed((20, 12)) > 20 * 12 * 4
    assert any(init in note for note in changes.notes)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_residual_is_rounded_to_the_base_dtype(init: str, tmp_path: Path) -> None:
    module = models.Everything().to(torch.bfloat16)
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights=init)
    trained(copy.deepcopy(module), config, tmp_path / "adapter", scale=0.02)
    base = Base(module.state_dict())
    ours = applied(base, changes_of(base, tmp_path / "adapter", ModuleNames(module)), seed=1)
    theirs = merged_module(module, tmp_path / "adapter")
    for name in LINEAR:
        ours_bits = ours[f"{name}.weight"].view(torch.int16).int()
        steps = (ours_bits - theirs[f"{name}.weight"].view(torch.int16).int()).abs()
        assert (steps <= 1).all() and (steps > 0).float().mean() < 0.05


def test_kasa(tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=LINEAR, kasa_config=KasaConfig())
    check_module(models.Everything(), config, tmp_path)


def test_block_diagonal(tmp_path: Path) -> None:
    blocks = BdLoraConfig(target_modules_bd_a=["linear"], target_modules_bd_b=["square"], nblocks=2)
    config = LoraConfig(r=4, target_modules=LINEAR, use_bdlora=blocks)
    module = torch.nn.Sequential()
    everything = models.Everything()
    module.add_module("linear", everything.linear)
    module.add_module("square", everything.square)
    check_module(module, config, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"velora_config": VeloraConfig(num_groups=4)},
        {"monteclora_config": MontecloraConfig(num_samples=2)},
    ],
    ids=["velora", "monteclora"],
)
def test_variants_that_only_train_otherwise(option: dict[str, object], tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR, **option)
    check_module(models.Everything(), config, tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_saved_base_layer_already_is_the_residual(init: str, tmp_path: Path) -> None:
    """PEFT saves a targeted head's base layer as training left it, and loads it after its init."""
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=init)
    _, changes, _ = check_model(models.llama(), config, tmp_path)
    assert not any(isinstance(s, Residual) for s in changes.tensors["lm_head.weight"].steps)
