"""`--to onnx`, `openvino`, `gptq`, `awq`, `gptqmodel`: what is refused before any engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group
from remerge.errors import BadInput, UsageError

INSTALL = "Run: remerge engines install "


def command(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def merge(inputs: Path, out: Path, *options: object) -> Result:
    return command("merge", inputs / "base", inputs / "adapter", "-o", out, *options)


def refused(done: Result) -> str:
    assert isinstance(done.exception, UsageError), (done.exception, done.output)
    assert done.stdout == ""
    return str(done.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "onnx:int3"), "--to onnx:int3 is no precision"),
        (("--to", "openvino:q4"), "--to openvino:q4 is no precision"),
        (("--to", "gptq:W3A16"), "--to gptq:W3A16 is no scheme"),
        (("--to", "awq:int4"), "--to awq:int4 is no scheme"),
        (("--to", "gptqmodel:int3"), "--to gptqmodel:int3 is no width"),
        (("--to", "onnx", "--calibration", "x"), "--calibration belongs to --to gptq and --to awq"),
        (("--calibration-samples", "4"), "--calibration-samples belongs to --to gptq"),
        (("--to", "gguf:F16", "--group-size", "32"), "--group-size belongs to --to gptq"),
        (("--to", "gptq", "--calibration", "/no/where"), "--calibration /no/where cannot be read"),
        (("--to", "gptq", "--calibration-samples", "0"), "--calibration-samples with --to gptq"),
        (("--to", "awq", "--calibration-length", "1"), "--calibration-length with --to awq"),
        (("--to", "gptqmodel", "--group-size", "1"), "--group-size with --to gptqmodel"),
        (("--to", "gptq", "--dtype", "float16"), "--dtype float16 means nothing with --to gptq"),
        (("--to", "onnx", "--max-shard-size", "5GB"), "--max-shard-size means nothing"),
        (("--to", "onnx:INT4"), f"{INSTALL}onnxruntime-genai"),
        (("--to", "openvino"), f"{INSTALL}openvino"),
        (("--to", "awq:w4a16"), f"{INSTALL}llm-compressor"),
        (("--to", "gptqmodel:int8", "--prove"), f"{INSTALL}gptqmodel"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refusals(inputs: Path, tmp_path: Path, options: tuple[str, ...], said: str):
    assert said in refused(merge(inputs, tmp_path / "out", *options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("merge",), ("export",)])
def test_prove_is_for_engines(inputs: Path, tmp_path: Path, words: tuple[str, ...]):
    places = [inputs / "base"] + ([inputs / "adapter"] if words == ("merge",) else [])
    done = command(*words, *places, "-o", tmp_path / "out", "--prove")
    assert done.exit_code == 2
    assert "--prove is for what engines write" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_reads_the_samples_alone(inputs: Path, tmp_path: Path):
    """The key of what is calibrated on other samples is another one."""
    keys: set[str] = set()
    for text in ("one", "another"):
        (tmp_path / "samples.txt").write_text(text)
        options = ("--to", "gptq", "--calibration", tmp_path / "samples.txt", "--dry-run", "--json")
        done = merge(inputs, tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        keys.add(done.stdout)
    assert len(keys) == 2


def test_a_recipe_file_asks_for_it(inputs: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(
        f"base: {inputs / 'base'}\nadapters: [{inputs / 'adapter'}]\nto: gptq\n"
        f"calibration_samples: 0\noutput: {tmp_path / 'out'}\n"
    )
    said = refused(command("merge", "--recipe", tmp_path / "recipe.yaml"))
    assert "--calibration-samples with --to gptq" in said


def test_a_model_larger_than_memory(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Refused before anything is written: the engine would be killed after minutes."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("remerge.artefacts.making_by_engine.memory", lambda: 1000)
    option = f"onnxruntime-genai={tmp_path / 'python'}"
    done = merge(inputs, tmp_path / "out", "--to", "onnx", "--engine-python", option)
    assert isinstance(done.exception, BadInput)
    assert "holds the whole model in memory" in str(done.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"python"}
