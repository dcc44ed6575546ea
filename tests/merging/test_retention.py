"""What the output keeps of a delta, against a float64 computation on whole tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import remerge
from remerge.artefacts.manifest import Manifest, read_manifest
from remerge.merging import budget
from remerge.merging.retention import Sums
from tests import tiny


def weakened(adapter: Path, scale: float) -> None:
    """The same adapter with a delta so many times as large."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: v * scale if "lora_B" in k else v for k, v in tensors.items()}, file)


def delta(adapter: Path, name: str) -> torch.Tensor:
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    a, b = (tensors[f"{key}.lora_{part}.weight"].to(torch.float64) for part in "AB")
    return tiny.ALPHA / tiny.RANK * (b @ a)


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    """Inputs whose delta is mostly smaller than the last bit of bfloat16."""
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    weakened(tmp_path / "adapter", 1e-4)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_full_equals_float64(tmp_path: Path, dtype: torch.dtype, scale: float):
    tiny.write_base(tmp_path / "base", dtype)
    tiny.write_adapter(tmp_path / "adapter")
    weakened(tmp_path / "adapter", scale)
    result = remerge.merge(
        tmp_path / "base", tmp_path / "adapter", tmp_path / "out", retention="full"
    )
    report = result.manifest.retention
    assert report is not None
    assert report.tensors.keys() == tiny.SHAPES.keys()
    base, output = tiny.read_tensors(tmp_path / "base"), tiny.read_tensors(tmp_path / "out")
    sums = torch.zeros(3, dtype=torch.float64)
    for name, record in report.tensors.items():
        change, kept = (
            delta(tmp_path / "adapter", name),
            output[name].double() - base[name].double(),
        )
        dd, kd, nn = change.square().sum(), (kept * change).sum(), (kept - change).square().sum()
        sums += torch.stack([dd, kd, nn])
        assert record.elements == change.numel()
        assert record.delta == pytest.approx(float(dd.sqrt()), rel=1e-5)
        assert record.kept == pytest.approx(float(kd / dd), rel=1e-5)
        assert record.noise == pytest.approx(float((nn / dd).sqrt()), rel=1e-5)
        assert record.unchanged == pytest.approx(float((kept == 0).double().mean()), rel=1e-5)
    assert report.overall.delta == pytest.approx(float(sums[0].sqrt()), rel=1e-5)
    assert report.overall.kept == pytest.approx(float(sums[1] / sums[0]), rel=1e-5)
    assert report.overall.noise == pytest.approx(float((sums[2] / sums[0]).sqrt()), rel=1e-5)


def test_a_sample_is_near_the_whole(weak: Path):
    weakened(weak / "adapter", 1e2)
    sampled = remerge.merge(weak / "base", weak / "adapter", weak / "one").manifest
    whole = remerge.merge(weak / "base", weak / "adapter", weak / "two", retention="full").manifest
    assert sampled.retention is not None and whole.retention is not None
    assert sampled.retention.overall.elements < whole.retention.overall.elements
    assert sampled.retention.overall.kept == pytest.approx(whole.retention.overall.kept, rel=0.02)
    assert sampled.merge_key == whole.merge_key
    # The norm is that of the whole delta, not of what was looked at of it.
    assert sampled.retention.overall.delta == pytest.approx(whole.retention.overall.delta, rel=0.05)
    for name, record in whole.retention.tensors.items():
        assert sampled.retention.tensors[name].delta == pytest.approx(record.delta, rel=0.15)


@pytest.mark.parametrize("mode", ["sample", "full"])
def test_resources_change_no_figure(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
):
    def merged(name: str, **options: object) -> Manifest:
        return remerge.merge(  # type: ignore[no-any-return]
            inputs / "base", inputs / "adapter", tmp_path / name, retention=mode, **options
        ).manifest

    wanted = merged("one")
    assert merged("two", threads=1) == wanted
    assert merged("three", max_memory="512MiB", threads=3) == wanted
    monkeypatch.setattr(budget, "_CHUNK", 2**20)
    assert merged("four") == wanted


def test_sums_do_not_depend_on_the_order_of_a_vector_unit():
    """The halves of an odd number of values are added in pairs, none twice and none lost."""
    values = torch.rand(1013, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Sums.of(torch.zeros_like(values), values, values)
    assert found.delta == pytest.approx(float(values.square().sum()), rel=1e-14)
    assert found.kept == found.delta and found.noise == 0 and found.unchanged == 0


def test_a_lost_delta_is_told_with_the_way_out(weak: Path):
    command = [sys.executable, "-m", "remerge", "merge", str(weak / "base"), str(weak / "adapter")]
    shown = subprocess.run(
        [*command, "-o", str(weak / "a")], capture_output=True, text=True, check=True
    )
    assert "--dtype float16" in shown.stderr and "--keep-float32" in shown.stderr
    assert "delta kept" in shown.stdout
    printed = subprocess.run(
        [*command, "-o", str(weak / "b"), "--json"], capture_output=True, text=True, check=True
    )
    document = json.loads(printed.stdout)
    assert document["retention"]["overall"]["kept"] < 0.5
    assert any("--keep-float32" in note for note in document["notes"])


def test_keep_float32_keeps_the_delta(weak: Path):
    result = remerge.merge(
        weak / "base", weak / "adapter", weak / "out", keep_float32=["*.q_proj.weight"]
    )
    found, report = tiny.read_tensors(weak / "out"), result.manifest.retention
    assert report is not None
    for name in tiny.SHAPES:
        wide = name.endswith("q_proj.weight")
        assert found[name].dtype == (torch.float32 if wide else torch.bfloat16)
        assert (report.tensors[name].kept > 0.99) == wide
    remerge.verify(weak / "out")


def test_a_delta_of_zero_has_no_figures(tmp_path: Path):
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter", zero=True)
    report = remerge.merge(
        tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    ).manifest.retention
    assert report is not None
    assert report.overall.kept is None and report.overall.unchanged == 1.0
    assert report.overall.delta == 0.0


def test_manifests_without_the_norm_are_read(tmp_path: Path):
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    file = tmp_path / "out" / "remerge.json"
    document = json.loads(file.read_text())
    records = [document["retention"]["overall"], *document["retention"]["tensors"].values()]
    assert all(record.pop("delta") > 0 for record in records)
    file.write_text(json.dumps(document))
    found = read_manifest(tmp_path / "out").retention
    assert found is not None and found.overall.delta is None and found.overall.kept is not None
    remerge.verify(tmp_path / "out")


def test_a_tensor_that_is_replaced_has_figures_too(tmp_path: Path):
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    file, name = tmp_path / "adapter" / "adapter_model.safetensors", "model.embed_tokens.weight"
    whole = torch.randn(tiny.PLAIN[name]) * 0.05
    save_file(load_file(file) | {f"base_model.model.{name}": whole}, file)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["modules_to_save"] = ["embed_tokens"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for options in ({}, {"max_shard_size": "1MB"}):
        out = tmp_path / f"out{len(options)}"
        result = remerge.merge(
            tmp_path / "base", tmp_path / "adapter", out, retention="full", **options
        )
        base, output = tiny.read_tensors(tmp_path / "base")[name], tiny.read_tensors(out)[name]
        change, kept = whole.double() - base.double(), output.double() - base.double()
        report = result.manifest.retention
        assert report is not None
        record = report.tensors[name]
        wanted = float((kept * change).sum() / change.square().sum())
        assert record.elements == whole.numel()
        assert record.kept == pytest.approx(wanted, rel=1e-5)
        assert record.noise == pytest.approx(
            float((kept - change).norm() / change.norm()), rel=1e-5
        )
