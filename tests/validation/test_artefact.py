"""What a path names, and which format's limits hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remerge.errors import BadInput
from remerge.validation.artefact import find_artefact


def test_gguf_files_and_their_manifests(tmp_path: Path):
    manifest = {"format": "x", "recipe": {"form": {"file_type": "Q4_K_M"}}}
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    found = find_artefact(tmp_path / "a.gguf")
    assert (found.kind, found.manifest, found.format) == ("gguf", None, None)
    assert find_artefact(tmp_path).place == tmp_path / "a.gguf"
    # Beside it under the directory's name: only if it names this file.
    (tmp_path / "remerge.json").write_text(json.dumps(manifest | {"outputs": [{"name": "b.gguf"}]}))
    assert find_artefact(tmp_path / "a.gguf").manifest is None
    (tmp_path / "remerge.json").write_text(json.dumps(manifest | {"outputs": [{"name": "a.gguf"}]}))
    assert find_artefact(tmp_path / "a.gguf").format == "Q4_K_M"
    # Under its own.
    beside = tmp_path / "a.gguf.remerge.json"
    beside.write_text(json.dumps({"recipe": {"form": {"file_type": "Q8_0"}}}))
    assert find_artefact(tmp_path / "a.gguf").format == "Q8_0"
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"several GGUF files: a\.gguf, c\.gguf"):
        find_artefact(tmp_path)


@pytest.mark.parametrize(
    ("config", "form"),
    [
        ({}, "float32"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "int4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "int4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "fp4"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "int4"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "int8"),
        ({"quantization_config": {"quant_method": "unheard of"}}, None),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {
                        "a": {"weights": {"num_bits": 8, "type": "float"}},
                        "b": {"weights": {"num_bits": 4, "type": "int"}},
                    },
                }
            },
            "int4",
        ),
    ],
)
def test_formats_of_checkpoints(tmp_path: Path, config: dict[str, object], form: str | None):
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find_artefact(tmp_path)
    assert (found.kind, found.format) == ("checkpoint", form)


def test_formats_of_onnx(tmp_path: Path):
    (tmp_path / "genai_config.json").write_text("{}")
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"..\x10\x01B..")
    assert find_artefact(tmp_path).format == "float32"
    graph.write_bytes(b"..\x10\x0aB..")
    assert find_artefact(tmp_path).format == "float16"
    graph.write_bytes(b"\x0a\x04bits\x18\x08\xa0 \x0a\x04bits\x18\x04\xa0 \x10\x01B")
    assert find_artefact(tmp_path).format == "int4"
    (tmp_path / "remerge.json").write_text('{"recipe": {"form": {"precision": "fp16"}}}')
    assert find_artefact(tmp_path).format == "float16"


def test_adapters_and_broken_manifests(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    for content, said in (("[]", "not a valid"), ("{", "not a valid"), ("{}", "not a valid")):
        (tmp_path / "remerge.json").write_text(content)
        with pytest.raises(BadInput, match=said):
            assert find_artefact(tmp_path).origin
    (tmp_path / "remerge.json").write_text('{"format": "remerge-adapter/1"}')
    with pytest.raises(BadInput, match="holds an adapter, not a model"):
        assert find_artefact(tmp_path).origin
