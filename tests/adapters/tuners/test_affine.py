"""GLoRA: weights scaled and shifted, biases that see the weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GloraConfig
from safetensors.torch import load_file

import remerge
from tests.adapters.tuners.against_peft import (
    Tensors,
    assert_independent,
    assert_same,
    edit,
    merge_both,
    our_merged,
)

LAYERS = ["q_proj", "k_proj", "gate_proj", "down_proj"]
WITH_BIAS = ["fc1", "fc2", "q_proj", "k_proj"]


@pytest.mark.parametrize("c", ["lora", "vector", "none"])
@pytest.mark.parametrize("ab", ["lora", "vector", "constant", "none"])
def test_glora(ab: Any, c: Any, tmp_path: Path) -> None:
    de: Any = {"lora": "constant", "vector": "vector", "none": "none"}[c]
    asked = GloraConfig(r=3, target_modules=WITH_BIAS, config_A_B=ab, config_C=c, config_D_E=de)
    if ab == c == "none":
        return
    both = merge_both(asked, "whisper", tmp_path)
    assert any(name.endswith("bias") for name in both.changed) == (c != "none")
    assert_same(both)
    if ab == "lora":
        assert_independent(both, tmp_path)


def test_glora_without_biases(tmp_path: Path) -> None:
    both = merge_both(GloraConfig(r=3, target_modules=LAYERS), "llama", tmp_path)
    assert len(both.changed) == 8
    assert_same(both)


def test_glora_in_16_bits(tmp_path: Path) -> None:
    """Against float64: PEFT rounds every factor, product and sum of its to 16 bits."""
    asked = GloraConfig(r=3, target_modules=["fc1"])
    both = merge_both(asked, "whisper", tmp_path, torch.bfloat16)
    held = load_file(both.adapter_path / "adapter_model.safetensors")
    for side in ("encoder", "decoder"):
        name = f"model.{side}.layers.0.fc1"
        parts = {
            key.rpartition("glora_")[2]: value.double()
            for key, value in held.items()
            if f"{name}.glora_" in key
        }
        product = {path: parts[f"{path}.Xd"] @ parts[f"{path}.Xu"] for path in "ABC"}
        weight, bias = (both.base[f"{name}.{leaf}"].double() for leaf in ("weight", "bias"))
        expected = {
            "weight": weight + weight * product["A"] + product["B"],
            "bias": bias * (1 + parts["D.X"]) + parts["E.X"] + (weight @ product["C"])[:, 0],
        }
        for leaf, values in expected.items():
            assert torch.equal(both.ours[f"{name}.{leaf}"], values.float().bfloat16())


@pytest.mark.parametrize("leaf", ["A.Xd", "B.Xu", "C.Xd", "D.X"])
def test_keys_and_misfits(leaf: str, tmp_path: Path) -> None:
    both = merge_both(GloraConfig(r=3, target_modules=WITH_BIAS), "whisper", tmp_path)
    path, _, end = leaf.partition(".")

    def named(held: Tensors) -> Tensors:
        old, new = f"glora_{path}.", f"glora_{path}.default."
        return {name.replace(old, new): value for name, value in held.items()}

    edit(both.adapter_path, named)
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
    key = f"base_model.model.model.decoder.layers.0.fc2.glora_{path}.default.{end}"
    edit(both.adapter_path, lambda held: held | {key: torch.cat([held[key], held[key]])})
    with pytest.raises(remerge.RemergeError, match=f"fc2.glora_{path}"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    edit(both.adapter_path, lambda held: {n: v for n, v in held.items() if n != key})
    with pytest.raises(remerge.RemergeError, match=rf"glora_{path}\.{end} is missing"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
