"""Quantised bases of every format that transformers loads on a CPU: merged as it dequantises them,
and written back in their own format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import preset_name_to_scheme
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    GptOssConfig,
    LlamaConfig,
    Mxfp4Config,
)

import remerge
from tests.merging import quantised
from tests.sources.codecs import test_awq as awq
from tests.sources.codecs import test_block_fp8 as fp8
from tests.sources.codecs import test_compressed_tensors as packed
from tests.sources.codecs import test_gptq as gptq
from tests.sources.codecs import test_mxfp4 as mxfp4

PRESETS = ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4")
WRITTEN = ("W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "fp8", "mxfp4")


def llama(path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=96,
        dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)


def gpt_oss(path: Path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=96,
        layer_types=["full_attention"],
        dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(path)


def rewritten(
    plain: Path,
    path: Path,
    quantise: Callable[[str, torch.Tensor], dict[str, torch.Tensor] | None],
    stated: dict[str, Any],
) -> None:
    """The checkpoint with some tensors replaced by their quantised parts."""
    path.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        tensors |= quantise(name, tensor) or {name: tensor}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": stated}
    (path / "config.json").write_text(json.dumps(config))


def write(kind: str, plain: Path, path: Path) -> Callable[[Path], Any]:
    """A quantised checkpoint, and what gives the model that its library unpacks from one."""
    if kind == "fp8":
        stated = {
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        }

        def blocks(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
            if "_proj." not in name:
                return None
            codes, scales = fp8.quantised(tensor, [128, 128])
            return {name: codes, f"{name}_scale_inv": scales}

        rewritten(plain, path, blocks, stated)
        return lambda place: AutoModelForCausalLM.from_pretrained(
            place, quantization_config=FineGrainedFP8Config(dequantize=True), dtype="auto"
        )
    if kind == "mxfp4":

        def experts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
            if not name.endswith(("gate_up_proj", "down_proj")):
                return None
            codes, scales = mxfp4.quantised(tensor)
            return {f"{name}_blocks": codes, f"{name}_scales": scales}

        rewritten(plain, path, experts, {"quant_method": "mxfp4"})
        return lambda place: AutoModelForCausalLM.from_pretrained(
            place, quantization_config=Mxfp4Config(dequantize=True), dtype="auto"
        )
    if kind in ("gptq", "awq"):
        values: dict[str, torch.Tensor] = {}

        def words(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
            if "_proj." not in name:
                return None
            shape, stem = (tensor.shape[0], tensor.shape[1]), name.removesuffix("weight")
            if kind == "gptq":
                layer = gptq.Layer(shape, 4, 32, torch.bfloat16, ordered=False)
                held, values[name] = layer.parts, layer.values
            else:
                held, values[name] = awq.layer(shape, 32, torch.bfloat16)
            return {part.replace("x.", stem): tensor for part, tensor in held.items()}

        def described(_: Path) -> Any:
            model = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
            model.load_state_dict(model.state_dict() | values)
            return model

        stated = (gptq.config(4, 32) if kind == "gptq" else awq.config())["quantization_config"]
        rewritten(plain, path, words, stated)
        return described
    scheme = preset_name_to_scheme(kind, ["Linear"])

    def parts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if "_proj." not in name:
            return None
        module = name.removesuffix(".weight")
        return packed.named(packed.quantised(tensor, scheme, torch.bfloat16), module)

    def unpacked(place: Path) -> Any:
        model = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
        stored, state = quantised.read(place), model.state_dict()
        for name in state:
            if "_proj." in name:
                module = name.removesuffix("weight")
                held = {k.removeprefix(module): v for k, v in stored.items() if module in k}
                state[name] = packed.compressor(scheme).decompress(held, scheme)["weight"]
        model.load_state_dict(state)
        return model

    config = packed.config_of(scheme, ignore=["lm_head"])["quantization_config"]
    rewritten(plain, path, parts, config)
    return unpacked


def adapt(plain: Path, path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
    stacked = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["q_proj", "o_proj", *([] if "gpt" in plain.name else ["down_proj"])],
        target_parameters=stacked if "gpt" in plain.name else None,
    )
    adapted = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    llama(root / "llama")
    gpt_oss(root / "gpt-oss")
    adapt(root / "llama", root / "llama-adapter")
    adapt(root / "gpt-oss", root / "gpt-oss-adapter")
    return root


@pytest.mark.parametrize("kind", [*PRESETS, "fp8", "mxfp4", "gptq", "awq"])
def test_equals_dequantise_then_peft(place: Path, tmp_path: Path, kind: str):
    model = "gpt-oss" if kind == "mxfp4" else "llama"
    unpacked = write(kind, place / model, tmp_path / "base")
    adapter = place / f"{model}-adapter"
    result = remerge.merge(tmp_path / "base", adapter, tmp_path / "out")
    theirs = unpacked(tmp_path / "base")
    base = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    wanted = PeftModel.from_pretrained(theirs, adapter).merge_and_unload().state_dict()
    found = quantised.read(tmp_path / "out")
    assert found.keys() == set(wanted)
    for name, tensor in wanted.items():
        if ".experts." in name:
            # PEFT rounds the delta of experts before it adds it.
            largest = tensor.abs().max() + (tensor - base[name]).abs().max()
            assert float((found[name] - tensor).abs().max()) <= 2**-7 * float(largest), name
        else:
            assert quantised.ulps(found[name], tensor) <= 1, name
        if torch.equal(tensor, base[name]):
            assert torch.equal(found[name], tensor), name
    assert result.manifest.formats
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert not hasattr(loaded.config, "quantization_config")
    remerge.verify(tmp_path / "out")


@pytest.mark.parametrize("kind", WRITTEN)
def test_written_back(place: Path, tmp_path: Path, kind: str):
    model = "gpt-oss" if kind == "mxfp4" else "llama"
    unpacked = write(kind, place / model, tmp_path / "base")
    adapter = place / f"{model}-adapter"
    remerge.merge(tmp_path / "base", adapter, tmp_path / "out", requantize="same", retention="full")
    before, after = quantised.read(tmp_path / "base"), quantised.read(tmp_path / "out")
    assert before.keys() == after.keys()
    touched = ("q_proj", "o_proj", "down_proj", *(["gate_up_proj"] if kind == "mxfp4" else []))
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape), name
        if not any(part in name for part in touched) or name.endswith("_bias"):
            assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    exact = remerge.merge(tmp_path / "base", adapter, tmp_path / "exact").output
    decoded = unpacked(tmp_path / "out").state_dict()
    for name, tensor in quantised.read(exact).items():
        error = (decoded[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert error < (0.2 if kind in ("NVFP4", "mxfp4") else 0.05), name
    remerge.verify(tmp_path / "out")


@pytest.mark.parametrize("kind", ["W4A16", "gptq", "awq"])
def test_formats_that_cannot_be_written_are_refused(place: Path, tmp_path: Path, kind: str):
    write(kind, place / "llama", tmp_path / "base")
    with pytest.raises(remerge.Unsupported, match="cannot write"):
        remerge.merge(
            tmp_path / "base", place / "llama-adapter", tmp_path / "out", requantize="same"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("within", [None, "text_config"])
def test_the_older_key_of_compressed_tensors_is_read(
    place: Path, tmp_path: Path, within: str | None
):
    write("FP8_DYNAMIC", place / "llama", tmp_path / "base")
    adapter = place / "llama-adapter"
    wanted = quantised.read(remerge.merge(tmp_path / "base", adapter, tmp_path / "new").output)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    older = {"compression_config": config.pop("quantization_config") | {"quant_method": "sparseml"}}
    config |= {within: older} if within else older
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    out = remerge.merge(tmp_path / "base", adapter, tmp_path / "old").output
    for name, tensor in quantised.read(out).items():
        assert torch.equal(tensor, wanted[name]), name
    assert "compression_config" not in (out / "config.json").read_text()


def test_a_quantisation_that_no_tensor_has_is_taken_out(place: Path, tmp_path: Path):
    rewritten(place / "llama", tmp_path / "base", lambda *_: None, {"quant_method": "fp8"})
    remerge.merge(tmp_path / "base", place / "llama-adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    remerge.verify(tmp_path / "out")
