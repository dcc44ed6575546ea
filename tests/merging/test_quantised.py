"""Merging into quantised bases: what the adapter saw, the original, or the base's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import remerge
from remerge.artefacts.manifest import read_manifest
from tests.merging import quantised

NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4-double": {**NF4, "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantised")
    quantised.write_plain(root / "plain")
    quantised.write_adapter(root / "plain", root / "adapter")
    for kind, options in KINDS.items():
        quantised.quantise(root / "plain", root / kind, **options)
        quantised.dequantised(root / kind, root / "plain", root / f"{kind}-plain")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_equals_dequantise_then_peft(place: Path, tmp_path: Path, kind: str):
    result = remerge.merge(place / kind, place / "adapter", tmp_path / "out")
    wanted = quantised.merged_by_peft(place / f"{kind}-plain", place / "adapter")
    found = quantised.read(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.bfloat16
        assert quantised.ulps(found[name], tensor) <= 1, name
    assert result.manifest.recipe.base_precision == "dequantized"
    assert sum(result.manifest.formats.values()) == 14
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    remerge.verify(tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_requantised_to_the_same_format(place: Path, tmp_path: Path, kind: str):
    remerge.merge(
        place / kind, place / "adapter", tmp_path / "out", requantize="same", retention="full"
    )
    before, after = quantised.read(place / kind), quantised.read(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
        touched = any(f".{linear}." in name for linear in quantised.LINEARS)
        if not touched or name.endswith((".quant_map", "_state.bitsandbytes__nf4")):
            assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    config = (tmp_path / "out" / "config.json").read_bytes()
    assert config == (place / kind / "config.json").read_bytes()
    quantised.dequantised(tmp_path / "out", place / "plain", tmp_path / "decoded")
    result = quantised.read(tmp_path / "decoded")
    base = quantised.read(place / f"{kind}-plain")
    wanted = quantised.merged_by_peft(place / f"{kind}-plain", place / "adapter")
    remerge.verify(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.retention is not None
    for name, record in manifest.retention.tensors.items():
        kept = result[name].double() - base[name].double()
        change = quantised.delta(place / "adapter", name)
        assert record.kept == pytest.approx(
            float((kept * change).sum() / change.square().sum()), 1e-5
        )
        assert record.noise == pytest.approx(float((kept - change).norm() / change.norm()), 1e-5)
        assert record.unchanged == pytest.approx(float((kept == 0).double().mean()), 1e-5)
        # Half a step of a 4-bit table at the most.
        limit = 0.2 if "4" in kind else 0.02
        error = (result[name].double() - wanted[name].double()).abs().max()
        assert error <= limit * wanted[name].abs().max(), name


def test_a_zero_delta_keeps_the_codes(place: Path, tmp_path: Path):
    quantised.write_adapter(place / "plain", tmp_path / "zero", scale=0.0)
    remerge.merge(place / "nf4", tmp_path / "zero", tmp_path / "out", requantize="same")
    before, after = quantised.read(place / "nf4"), quantised.read(tmp_path / "out")
    for name, tensor in before.items():
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_simulated_nf4_equals_the_quantised_base(place: Path, tmp_path: Path):
    remerge.merge(place / "nf4", place / "adapter", tmp_path / "real")
    remerge.merge(place / "plain", place / "adapter", tmp_path / "simulated", simulate="nf4")
    real, simulated = quantised.read(tmp_path / "real"), quantised.read(tmp_path / "simulated")
    for name, tensor in real.items():
        assert torch.equal(simulated[name], tensor), name
    remerge.verify(tmp_path / "simulated")


def test_the_original_in_the_place_of_the_quantised_base(place: Path, tmp_path: Path):
    result = remerge.merge(
        place / "nf4",
        place / "adapter",
        tmp_path / "out",
        base_precision=f"original={place / 'plain'}",
    )
    assert result.manifest.recipe.base_precision == "original"
    remerge.merge(place / "plain", place / "adapter", tmp_path / "plain")
    for file in (tmp_path / "plain").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    remerge.verify(tmp_path / "out")


def test_another_original_is_refused(place: Path, tmp_path: Path):
    with pytest.raises(remerge.BadInput, match="quantised itself"):
        remerge.merge(
            place / "nf4",
            place / "adapter",
            tmp_path / "out",
            base_precision=f"original={place / 'fp4'}",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ("plain", {"requantize": "same"}, "not quantised"),
        ("nf4", {"simulate": "nf4"}, "this one is quantised"),
        ("nf4", {"requantize": "same", "dtype": "float16"}, "fixed"),
        ("nf4", {"base_precision": "best"}, "is not known"),
        ("nf4", {"keep_float32": ["nothing.*"]}, "matches no tensor"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    place: Path, tmp_path: Path, base: str, options: dict[str, Any], message: str
):
    with pytest.raises(remerge.UsageError, match=message):
        remerge.merge(place / base, place / "adapter", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"max_memory": "512MiB"}, {"max_shard_size": "20kB"}]
)
@pytest.mark.parametrize("requantize", [None, "same"])
def test_resources_change_no_value(
    place: Path, tmp_path: Path, options: dict[str, Any], requantize: str | None
):
    remerge.merge(place / "nf4-double", place / "adapter", tmp_path / "one", requantize=requantize)
    remerge.merge(
        place / "nf4-double", place / "adapter", tmp_path / "two", requantize=requantize, **options
    )
    one, two = quantised.read(tmp_path / "one"), quantised.read(tmp_path / "two")
    for name, tensor in one.items():
        assert torch.equal(two[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_open_merged_reads_a_quantised_base(place: Path, tmp_path: Path):
    remerge.merge(place / "nf4", place / "adapter", tmp_path / "out")
    wanted = quantised.read(tmp_path / "out")
    with remerge.open_merged(place / "nf4", place / "adapter") as merged:
        for name, tensor in wanted.items():
            assert torch.equal(merged[name][...], tensor)
        name = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(merged[name][3:7], wanted[name][3:7])
        model = merged.load_model()
    assert torch.equal(model.state_dict()[name], wanted[name])
