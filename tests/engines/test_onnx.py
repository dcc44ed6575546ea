"""ONNX models against transformers: ONNX Runtime gives the logits of the merge, whatever the
configuration's spelling."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import remerge
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.making_by_engine import EngineResult
from remerge.errors import IntegrityError, NotReproduced, Unsupported
from tests import tiny
from tests.engines import llama_models
from tests.engines.places import needs, python_of

PYTHON = python_of("onnxruntime-genai")
PYTHONS = {"onnxruntime-genai": str(PYTHON)}
pytestmark = needs("onnxruntime-genai")

EXAMPLES = llama_models.EXAMPLES
TOKENS = [(911 * position + 7) % 500 for position in range(48)]
# ONNX Runtime alone, without onnxruntime-genai: the graph with an empty cache.
_RUN = """
import json, sys, numpy as np, onnxruntime as o
session = o.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tokens, size = json.loads(sys.argv[3]), int(sys.argv[4])
given = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64),
         "position_ids": np.arange(len(tokens))[None]}
names = {put.name for put in session.get_inputs()}
given = {name: values for name, values in given.items() if name in names}
for put in session.get_inputs():
    if put.name not in given:
        given[put.name] = np.zeros((1, put.shape[1], 0, size), np.float32)
np.save(sys.argv[2], session.run(["logits"], given)[0][0])
"""


def make(base: Path, out: Path, to: str = "onnx", **options: object) -> EngineManifest:
    result = remerge.export(base, out, to=to, engine_python=PYTHONS, **options)  # type: ignore[arg-type]
    assert isinstance(result, EngineResult)
    return result.manifest


def reword(base: Path, **changes: object) -> None:
    """Change keys of config.json; None takes one out."""
    config = json.loads((base / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (base / "config.json").write_text(json.dumps(kept))


def by_transformers(model: Path) -> np.ndarray:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        return loaded(torch.tensor([TOKENS])).logits[0].numpy()


def by_onnx(model: Path, place: Path) -> np.ndarray:
    config = json.loads((model / "genai_config.json").read_text())
    size = config["model"]["decoder"]["head_size"]
    words = [model / "model.onnx", place / "logits.npy", json.dumps(TOKENS), size]
    command = [str(word) for word in (PYTHON, "-c", _RUN, *words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(place / "logits.npy")


@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "qwen3-tied", "gemma", "phi3-fused"])
def test_logits_are_those_of_the_merge(tmp_path: Path, name: str):
    base, adapter = llama_models.write(name, tmp_path, None)
    if name == "phi3-fused":
        reword(base, original_max_position_embeddings=128, eos_token_id=1)
        (base / "generation_config.json").unlink()
    remerge.merge(base, adapter, tmp_path / "merged")
    manifest = make(base, tmp_path / "out", adapters=adapter)
    expected = by_transformers(tmp_path / "merged")
    assert np.abs(by_onnx(tmp_path / "out", tmp_path) - expected).max() < 1e-4
    # The adapter is in it.
    assert np.abs(by_transformers(base) - expected).max() > 1e-2
    assert manifest.measured["logits_relative_difference"] < 1e-4
    assert manifest.reproducible == "same-stack"


@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters"])
def test_either_spelling_of_rotary_positions(tmp_path: Path, spelling: str):
    base = tmp_path / "base"
    shutil.copytree(EXAMPLES / "base", base)
    reword(base, **{"rope_parameters" if spelling == "rope_theta" else "rope_theta": None})
    make(base, tmp_path / "out", adapters=EXAMPLES / "adapters" / "sort")
    remerge.merge(
        EXAMPLES / "base", EXAMPLES / "adapters" / "sort", tmp_path / "m", dtype="float32"
    )
    difference = by_onnx(tmp_path / "out", tmp_path) - by_transformers(tmp_path / "m")
    assert np.abs(difference).max() < 1e-3


def test_fewer_bits_and_verify(tmp_path: Path):
    """What is derived again is the same; a file that was changed is found."""
    out = tmp_path / "out"
    manifest = make(EXAMPLES / "base", out, "onnx:int4")
    assert 0 < manifest.measured["kl_divergence"] < 0.2
    assert manifest.bits_per_weight < 8
    own = {path.name: path.read_bytes() for path in (EXAMPLES / "base").glob("tokenizer*")}
    assert all((out / name).read_bytes() == content for name, content in own.items())
    before = tiny.files_of(tmp_path)
    assert remerge.verify(out, engine_python=PYTHONS).files == len(manifest.outputs)
    assert tiny.files_of(tmp_path) == before
    with (out / "model.onnx.data").open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError):
        remerge.verify(out, engine_python=PYTHONS)


def test_an_architecture_that_the_builder_does_not_know(tmp_path: Path):
    base, adapter = llama_models.write("mixtral", tmp_path, None)
    with pytest.raises(Unsupported, match=r"does not know MixtralForCausalLM.*LlamaForCausalLM"):
        make(base, tmp_path / "out", adapters=adapter)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_another_model_is_not_published(tmp_path: Path):
    """The builder caps the logits of any model whose configuration says so; transformers' Llama
    does not, and only the logits tell."""
    base = tmp_path / "base"
    shutil.copytree(EXAMPLES / "base", base)
    reword(base, final_logit_softcapping=5.0)
    with pytest.raises(NotReproduced, match="In ONNX Runtime the model's logits differ by"):
        make(base, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}
