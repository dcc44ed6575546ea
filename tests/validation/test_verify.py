"""``verify``: derives again, says what differs, and with which exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from tests import tiny


@pytest.fixture
def merged(inputs: Path, tmp_path: Path) -> Path:
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    return tmp_path / "out"


def test_a_merge_verifies_and_stays_as_it_is(merged: Path):
    before = tiny.files_of(merged, without=())
    report = remerge.verify(merged)
    assert report.files == 6
    assert tiny.files_of(merged, without=()) == before


def flip(path: Path, tensor: str, element: int) -> None:
    """Change the lowest bit of one bfloat16 element, in place."""
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    start = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"][0]
    raw[8 + length + start + 2 * element] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_flipped_bit_is_named(merged: Path, tensor: str):
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    flip(merged / index["weight_map"][tensor], tensor, 700)
    with pytest.raises(remerge.IntegrityError, match=rf"{tensor}, element 700: stored") as failure:
        remerge.verify(merged)
    assert failure.value.exit_code == 4


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json"])
def test_a_changed_side_file_is_named(merged: Path, name: str):
    (merged / name).write_text((merged / name).read_text() + " ")
    with pytest.raises(remerge.IntegrityError, match=name):
        remerge.verify(merged)


def test_a_missing_file_is_named(merged: Path):
    (merged / "generation_config.json").unlink()
    with pytest.raises(remerge.IntegrityError, match=r"generation_config\.json is missing"):
        remerge.verify(merged)


def test_a_derivation_that_differs_is_exit_5(merged: Path):
    """Weights and manifest were changed together: only deriving again can tell."""
    import hashlib

    shard = next(merged.glob("model-00001-*.safetensors"))
    tensors = load_file(shard)
    name = "model.layers.0.self_attn.q_proj.weight"
    flip(shard, name, 3)
    manifest = json.loads((merged / "remerge.json").read_text())
    for record in manifest["outputs"]:
        if record["name"] == shard.name:
            record["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (merged / "remerge.json").write_text(json.dumps(manifest))
    assert name in tensors
    with pytest.raises(remerge.NotReproduced, match=rf"{name}, element 3") as failure:
        remerge.verify(merged)
    assert failure.value.exit_code == 5


def test_another_adapter_or_base_is_noticed(inputs: Path, merged: Path, tmp_path: Path):
    tiny.write_adapter(tmp_path / "other", seed=9)
    with pytest.raises(remerge.IntegrityError, match="adapter"):
        remerge.verify(merged, adapter=tmp_path / "other")
    shutil.copytree(inputs / "base", tmp_path / "base")
    shard = next((tmp_path / "base").glob("model-00002-*.safetensors"))
    tensors = load_file(shard)
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(remerge.IntegrityError, match="base"):
        remerge.verify(merged, base=tmp_path / "base")


def test_moved_inputs_are_asked_for_then_given(inputs: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "inputs")
    remerge.merge(tmp_path / "inputs/base", tmp_path / "inputs/adapter", tmp_path / "out")
    (tmp_path / "inputs").rename(tmp_path / "moved")
    with pytest.raises(remerge.BadInput, match="--base"):
        remerge.verify(tmp_path / "out")
    moved = tmp_path / "moved"
    remerge.verify(tmp_path / "out", base=moved / "base", adapter=moved / "adapter")


def test_the_manifest_holds_no_path(merged: Path, inputs: Path):
    for name in ("remerge.json", "provenance.json"):
        text = (merged / name).read_text()
        assert str(inputs) not in text and str(merged) not in text
        assert '"/' not in text


def test_a_decomposition_is_recorded_and_used(tmp_path: Path):
    """PiSSA's factors rest on LAPACK: verify takes the recorded ones."""
    tiny.write_base(tmp_path / "base", torch.bfloat16)
    tiny.write_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps(config | {"init_lora_weights": "pissa"})
    )
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    manifest = json.loads((tmp_path / "out/remerge.json").read_text())
    assert manifest["reproducible"] == "same-stack"
    assert "remerge.preparations" in {record["name"] for record in manifest["outputs"]}
    remerge.verify(tmp_path / "out")
