"""Checking checkpoints in vLLM and ONNX directories in ONNX Runtime, where these are installed.

Each takes gigabytes, so that `make engine-test` does not make them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import remerge
from tests.engines import llama_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BASE, ADAPTER = ROOT / "examples" / "base", ROOT / "examples" / "adapters" / "sort"
_INSTALLED = ROOT / ".engines/remerge/engines"


def interpreter(engine: str, variable: str) -> dict[str, str]:
    """What ``--engine-python`` would be given; skips the test where there is none."""
    python = Path(os.environ.get(variable, _INSTALLED / engine / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"{engine} is not installed; {variable} names an interpreter that has it")
    return {engine: str(python)}


def test_vllm_serves_the_merge_and_not_the_base(tmp_path: Path):
    pythons = interpreter("vllm", "REMERGE_TEST_VLLM")
    out = tmp_path / "out"
    remerge.merge(BASE, ADAPTER, out)
    report = remerge.check(out, "vllm", engine_python=pythons, max_prompts=3)
    assert report.passed, report.gates
    assert (report.word, report.format) == ("served", "bfloat16")
    assert report.comparison is not None and report.comparison.likeliest is None
    for file in BASE.glob("*.safetensors"):
        shutil.copy(file, out / file.name)
    report = remerge.check(out, "vllm", engine_python=pythons, max_prompts=3, answers=0)
    failing = {gate.name for gate in report.gates if not gate.passed}
    assert {"KL divergence", "adapter's share"} <= failing


def build_onnx(python: str, base: Path, adapter: Path, place: Path) -> Path:
    """The merge as onnxruntime-genai's builder writes it."""
    remerge.merge(base, adapter, place / "merged", dtype="float32")
    words = ["-i", place / "merged", "-o", place / "onnx", "-p", "fp32", "-e", "cpu"]
    command = [python, "-m", "onnxruntime_genai.models.builder", *words, "-c", place / "cache"]
    subprocess.run(command, check=True, capture_output=True)
    return place / "onnx"


def test_onnx_runtime_serves_the_merge_and_not_the_base(tmp_path: Path):
    pythons = interpreter("onnxruntime-genai", "REMERGE_TEST_GENAI")
    base, adapter = llama_models.write("llama", tmp_path, Path())
    out = build_onnx(*pythons.values(), base, adapter, tmp_path)
    asked: dict[str, Any] = {"engine_python": pythons, "max_prompts": 3}
    report = remerge.check(out, "onnxruntime", base=base, adapter=adapter, **asked)
    assert report.passed, report.gates
    assert (report.word, report.format) == ("served", "float32")
    assert any("puts no special tokens" in note for note in report.notes)
    report = remerge.check(out, "onnxruntime", reference=base, **asked)
    assert "KL divergence" in {gate.name for gate in report.gates if not gate.passed}
