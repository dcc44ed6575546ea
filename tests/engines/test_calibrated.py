"""Calibrated checkpoints: read back by transformers with compressed-tensors, and by remerge's own
codecs, whose values must be the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import remerge
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.making_by_engine import EngineResult
from remerge.errors import BadInput, Unsupported
from tests import tiny
from tests.engines import llama_models
from tests.engines.places import needs, python_of

pytestmark = needs("llm-compressor", "gptqmodel")
PYTHONS = {name: str(python_of(name)) for name in ("llm-compressor", "gptqmodel")}
BASE = llama_models.EXAMPLES / "base"
SORT = llama_models.EXAMPLES / "adapters" / "sort"
SAMPLES = llama_models.EXAMPLES / "eval" / "sort.jsonl"


def make(out: Path, to: str, base: Path = BASE, **options: object) -> EngineManifest:
    words = {"calibration": SAMPLES, "calibration_samples": 4, **options}
    result = remerge.export(base, out, to=to, engine_python=PYTHONS, **words)  # type: ignore[arg-type]
    assert isinstance(result, EngineResult)
    return result.manifest


def logits(model: Path) -> torch.Tensor:
    text = "Sort the digits: 499089"
    tokens = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        return loaded(**tokens).logits[0]


@pytest.mark.parametrize("to", ["gptq", "awq:W4A16"])
def test_transformers_reads_what_llm_compressor_writes(tmp_path: Path, to: str):
    out = tmp_path / "out"
    manifest = make(out, to, adapters=SORT)
    remerge.merge(BASE, SORT, tmp_path / "merged")
    expected, found = logits(tmp_path / "merged"), logits(out)
    assert (found - expected).norm() < 0.3 * expected.norm()
    assert (logits(BASE) - expected).norm() > (found - expected).norm()
    assert manifest.reproducible == "not proven"
    assert manifest.bits_per_weight < 6
    assert manifest.files["calibration"].name == "sort.jsonl"
    side = tiny.files_of(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == side[name]
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    # Nothing can be derived again that may come out differently: files are compared alone.
    found = remerge.verify(out)
    assert not found.derived
    assert "compared with their manifest alone" in " ".join(found.notes)


def test_zero_points(tmp_path: Path):
    """transformers 5.23 does not read packed zero points, so our codec does."""
    make(tmp_path / "out", "awq", adapters=SORT)
    remerge.export(tmp_path / "out", tmp_path / "plain")
    remerge.merge(BASE, SORT, tmp_path / "merged")
    expected, found = logits(tmp_path / "merged"), logits(tmp_path / "plain")
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_our_codec_reads_what_compressed_tensors_reads(tmp_path: Path):
    make(tmp_path / "out", "gptq")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    remerge.export(tmp_path / "out", tmp_path / "plain")
    ours: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "plain").glob("*.safetensors"):
        ours |= load_file(path)
    name = "model.layers.0.mlp.down_proj"
    # compressed-tensors decompresses at the model's first step.
    with torch.inference_mode():
        loaded(torch.tensor([[1]]))
    theirs = loaded.get_submodule(name).weight
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(ours[f"{name}.weight"], theirs)


def test_the_native_layout_proven_and_merged_into(tmp_path: Path):
    manifest = make(tmp_path / "native", "gptqmodel", prove=True)
    assert manifest.reproducible == "same-stack"
    result = remerge.merge(tmp_path / "native", SORT, tmp_path / "merged")
    assert result.manifest.formats == {"gptq 4 bit": 28}
    remerge.merge(BASE, SORT, tmp_path / "exact")
    expected, found = logits(tmp_path / "exact"), logits(tmp_path / "merged")
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_refused_before_anything_is_written(tmp_path: Path):
    (tmp_path / "in").mkdir()
    base, _ = llama_models.write("odd", tmp_path / "in", None)
    with pytest.raises(BadInput, match=r"has 192 columns.*--group-size 8|Use --to gguf|-size"):
        make(tmp_path / "out", "gptq", base)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_experts(tmp_path: Path):
    """llm-compressor's cannot be read back, gptqmodel's can, by itself."""
    (tmp_path / "in").mkdir()
    base, _ = llama_models.write("mixtral", tmp_path / "in", None)
    with pytest.raises(Unsupported, match=r"a mixture of experts.*--to gptqmodel"):
        make(tmp_path / "out", "gptq", base)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    manifest = make(tmp_path / "out", "gptqmodel", base)
    assert manifest.measured["logits_relative_difference"] < 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no sample"),
        ('{"text": "a"}\nno json', "Line 2 .* is no JSON object"),
        ('{"question": "a"}', "line 1 of samples.jsonl has no sample"),
        ('{"messages": ["text"]}', "The chat template refuses line 1"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, text: str, said: str):
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(BadInput, match=said):
        make(tmp_path / "out", "gptq", calibration=tmp_path / "samples.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path: Path, number: signal.Signals):
    """The same command ends with the output alone; the engine ended with its caller."""
    python = f"gptqmodel={PYTHONS['gptqmodel']}"
    words = [sys.executable, "-m", "remerge", "export", BASE, "-o", tmp_path / "out", "--to"]
    words += ["gptqmodel", "--calibration-samples", "2", "--engine-python", python]
    command = list(map(str, words))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        # The engine is at work.
        assert "Forecast" in running.stderr.readline()
        running.send_signal(number)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if number == signal.SIGTERM else [".out.remerge-partial"])
    for _ in range(50):
        if not _engines(tmp_path):
            break
        time.sleep(0.1)
    assert not _engines(tmp_path)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())


def _engines(place: Path) -> list[str]:
    """Processes that stand below a folder: engines do while they work."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if where.startswith(str(place)):
            found.append(process.name)
    return found
