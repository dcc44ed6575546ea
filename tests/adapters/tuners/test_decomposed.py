"""OSF and PSOFT: changes of the base's singular value decomposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import OSFConfig, PeftModel, PsoftConfig

import remerge
from tests.adapters.tuners.against_peft import (
    Both,
    assert_independent,
    assert_same,
    edit,
    merge_both,
    model_of,
    our_merged,
    quiet,
    with_name,
)

LAYERS = ["q_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.mark.parametrize("options", [{}, {"effective_rank": 3}, {"effective_rank": 0.8}])
def test_osf(options: dict[str, Any], tmp_path: Path) -> None:
    both = merge_both(OSFConfig(target_modules=LAYERS, **options), "llama", tmp_path)
    assert_same(both)
    assert_independent(both, tmp_path)


def test_osf_in_16_bits(tmp_path: Path) -> None:
    """Against the factors that PEFT holds, multiplied in float64: PEFT rounds the products."""
    both = merge_both(OSFConfig(target_modules=LAYERS), "llama", tmp_path, torch.bfloat16)
    with quiet(seed=0):
        peft = PeftModel.from_pretrained(
            model_of("llama", both.base_path, torch.bfloat16), str(both.adapter_path)
        )
    for name, layer in peft.base_model.model.named_modules():
        if hasattr(layer, "osf_svd_params"):
            trained = layer.osf_svd_params["default"]
            new = [trained[part].double() for part in ("U_low", "S_low", "V_low")]
            held = (layer._osf_U_low_init, layer._osf_S_low_init, layer._osf_V_low_init)
            old = [part["default"].double() for part in held]
            weight = both.base[f"{name}.weight"].double()
            weight = weight + (new[0] * new[1]) @ new[2] - (old[0] * old[1]) @ old[2]
            expected = weight.to(torch.float32).to(torch.bfloat16)
            assert torch.equal(both.ours[f"{name}.weight"], expected)


PSOFTS: list[dict[str, Any]] = [
    {},
    {"ab_svd_init": "pissa_init", "psoft_alpha": 9},
    {"psoft_orth": False, "psoft_mag_a": False},
    {"psoft_mag_b": False, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
    {"use_cayley_neumann": True, "num_cayley_neumann_terms": 7, "cayley_neumann_eps": 0.5},
    {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2},
    {"psoft_svd": "lowrank", "random_seed": 4, "psoft_svd_lowrank_niter": 3},
]


@pytest.mark.parametrize("options", PSOFTS)
def test_psoft(options: dict[str, Any], tmp_path: Path) -> None:
    both = merge_both(PsoftConfig(r=5, target_modules=LAYERS, **options), "llama", tmp_path)
    assert_same(both)
    assert_independent(both, tmp_path)


def test_psoft_in_16_bits(tmp_path: Path) -> None:
    both = merge_both(PsoftConfig(r=5, target_modules=LAYERS), "llama", tmp_path, torch.bfloat16)
    assert_same(both, equal=0.5, rounds_delta=1)


def _same_stack(both: Both) -> bool:
    return remerge.plan(both.base_path, both.adapter_path).reproducible == "same-stack"


CONFIGS: dict[str, Any] = {
    "osf_svd_params": OSFConfig(target_modules=LAYERS),
    "psoft_R": PsoftConfig(r=5, target_modules=LAYERS),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_keys_and_misfits(part: str, tmp_path: Path) -> None:
    both = merge_both(CONFIGS[part], "llama", tmp_path)
    edit(both.adapter_path, with_name("default", part))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
    leaf = "V_low" if part.startswith("osf") else "vector_a"
    key = f"base_model.model.model.layers.1.mlp.down_proj.{part}.default.{leaf}"
    edit(both.adapter_path, lambda held: held | {key: held[key][..., :-1]})
    with pytest.raises(remerge.RemergeError, match=f"down_proj.{part}"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if n != key})
    with pytest.raises(remerge.RemergeError, match=f"{leaf} is missing"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("part", CONFIGS)
def test_what_rests_on_lapack_says_so(part: str, tmp_path: Path) -> None:
    assert _same_stack(merge_both(CONFIGS[part], "llama", tmp_path))


def test_psoft_beside_whole_modules(tmp_path: Path) -> None:
    config = PsoftConfig(r=5, target_modules=LAYERS, modules_to_save=["input_layernorm"])
    both = merge_both(config, "llama", tmp_path)
    assert_same(both)
    assert any("input_layernorm" in name for name in both.changed)
