"""Whole models of several architectures in every scheme: the tensors that compressed-tensors makes
of the merge in float32, in checkpoints that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle import apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CompressedTensorsConfig

import remerge
from remerge.merging.schemes.registry import SCHEMES
from tests.merging import quantised
from tests.merging.schemes import models
from tests.sources.codecs import test_compressed_tensors as library

KINDS = ("llama", "qwen2", "qwen3-tied", "gemma", "phi3", "mixtral", "qwen3-moe", "qwen2-moe")
MORE = ("gpt-oss", "gemma3", "odd")
NEVER = ("embed", "lm_head", "norm", "gate.weight", "router", "vision", "multi_modal")
IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemes")


def prepared(place: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Base, adapter, and the merge in float32."""
    root = place / f"{kind}-{dtype}"
    if not root.exists():
        models.write_base(kind, root / "base", dtype)
        models.write_adapter(root / "base", root / "adapter", kind)
        remerge.merge(root / "base", root / "adapter", root / "float32", dtype="float32")
    return root


def load(path: Path, **options: Any) -> Any:
    loader: Any = AutoModelForImageTextToText if "gemma3" in str(path) else AutoModelForCausalLM
    return loader.from_pretrained(path, dtype="auto", **options)


def check_tensors(root: Path, out: Path, name: str, dtype: torch.dtype) -> set[str]:
    """Every tensor is the library's, or the plain merge's; the modules that are quantised."""
    scheme = models.scheme_of(name)
    merged = quantised.read(root / "float32")
    plain = root / "plain"
    if not plain.exists():
        remerge.merge(root / "base", root / "adapter", plain)
    wanted, found = quantised.read(plain), quantised.read(out)
    suffix = ".weight_scale"
    modules = {key.removesuffix(suffix) for key in found if key.endswith(suffix)}
    for module in modules:
        del wanted[f"{module}.weight"]
        parts = models.parts_of(module, merged, scheme, dtype)
        wanted |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        same = torch.equal(found[key].view(torch.uint8), tensor.contiguous().view(torch.uint8))
        assert same, key
    return modules


def check_loads(out: Path, merged: Path, name: str, modules: set[str]) -> None:
    """No key is missing or left over, and every weight reads as the library decompresses it."""
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    for given in ({}, options):
        model, info = load(out, output_loading_info=True, **given)
        assert not any(info.values()), info
        assert torch.isfinite(model(IDS).logits).all()
    reference = load(merged)
    # As transformers names modules in memory, which is not how checkpoints do.
    theirs, ours = reference.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    changed = {key for key, tensor in theirs.items() if not torch.equal(ours[key], tensor)}
    assert changed
    for key in changed:
        assert not any(part in key for part in NEVER), key
        largest = theirs[key].abs().max()
        step = {"fp8": 2**-4, "fp8-block": 2**-4, "w8a8": 2**-6, "nvfp4": 0.2}[name]
        assert (ours[key] - theirs[key]).abs().max() <= step * largest, key


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
@pytest.mark.parametrize("name", SCHEMES)
def test_equals_the_library_and_loads(place: Path, tmp_path: Path, kind: str, name: str):
    if (kind, name) == ("odd", "fp8-block"):
        pytest.skip("no layer of it fits, see below")
    root = prepared(place, kind)
    out = tmp_path / f"{kind}-out"
    result = remerge.merge(root / "base", root / "adapter", out, to=name)
    modules = check_tensors(root, out, name, torch.bfloat16)
    check_loads(out, root / "plain", name, modules)
    stated = models.stated(out)
    assert "lm_head" in stated["ignore"]
    groups = QuantizationConfig.model_validate(stated).config_groups
    wanted = models.scheme_of(name)
    wanted.format = SCHEMES[name].format
    assert groups["group_0"] == wanted
    experts = any("experts" in module for module in modules)
    if kind in ("mixtral", "qwen3-moe", "qwen2-moe"):
        assert experts == (name == "fp8")
        assert any("experts stay" in note for note in result.manifest.notes) == (name != "fp8")
    if kind == "gpt-oss":
        assert not experts
        assert r"re:.*\.mlp\.experts\..*" in stated["ignore"]
    if kind not in ("odd", "gpt-oss"):
        assert {"q_proj", "qkv_proj"} & {module.rpartition(".")[2] for module in modules}
    remerge.verify(out)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen3-tied"])
def test_logits_are_those_of_the_library_s_own_model(
    place: Path, tmp_path: Path, kind: str, name: str
):
    """A float32 base: scales are float32, and the library quantises the merge in memory."""
    root = prepared(place, kind, torch.float32)
    out = tmp_path / "out"
    remerge.merge(root / "base", root / "adapter", out, to=name)
    check_tensors(root, out, name, torch.float32)
    scheme = models.scheme_of(name)
    theirs: Any = load(root / "float32")
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(theirs, config)
    layers = {n: m for n, m in theirs.named_modules() if hasattr(m, "weight_scale")}
    weights = {f"{n}.weight": m.weight.data for n, m in layers.items()}
    for module, layer in layers.items():
        blocks, whole = library.blocks_of(layer.weight.data, scheme.weights), None
        if name == "nvfp4":
            whole = models.parts_of(module, weights, scheme, torch.float32)["weight_global_scale"]
            layer.weight_global_scale.data.copy_(whole)
        scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights, whole)
        layer.weight_scale.data.copy_(scale)
    assert layers
    # The library unpacks nvfp4 to bfloat16, whatever the model's dtype.
    whole = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    ours = load(out, **(whole if name == "nvfp4" else {}))
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=2e-2)
    plain = load(root / "float32")(IDS).logits
    apart = float((ours(IDS).logits - theirs(IDS).logits).abs().max())
    assert apart < 0.05 * float((plain - theirs(IDS).logits).abs().max())


@pytest.mark.parametrize("name", ["fp8-block", "w8a8", "nvfp4"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_experts_for_vllm(place: Path, tmp_path: Path, kind: str, name: str):
    root = prepared(place, kind)
    result = remerge.merge(
        root / "base", root / "adapter", tmp_path / "out", to=name, quantize_experts=True
    )
    modules = check_tensors(root, tmp_path / "out", name, torch.bfloat16)
    assert sum(".experts." in module for module in modules) == 2 * 4 * 3
    assert any("for vLLM" in note for note in result.manifest.notes)
    assert not any("experts" in each for each in models.stated(tmp_path / "out")["ignore"])
    remerge.verify(tmp_path / "out")


def test_columns_that_do_not_divide_are_left_out(place: Path, tmp_path: Path):
    root = prepared(place, "odd")
    result = remerge.merge(root / "base", root / "adapter", tmp_path / "out", to="nvfp4")
    (note,) = result.manifest.notes
    assert "o_proj.weight" in note and "columns in multiples of 16" in note
    ignore = models.stated(tmp_path / "out")["ignore"]
    assert {f"model.layers.{n}.self_attn.o_proj" for n in (0, 1)} < set(ignore)
    # No layer has columns in multiples of 128.
    with pytest.raises(remerge.RemergeError, match="No layer of the model can be written"):
        remerge.merge(root / "base", root / "adapter", tmp_path / "block", to="fp8-block")
    assert not (tmp_path / "block").exists()


@pytest.mark.parametrize(
    ("kind", "said"), [("gpt2", "is a Conv1D"), ("llama4", "builds .* in another way")]
)
def test_models_that_cannot_be_quantised(tmp_path: Path, kind: str, said: str):
    models.write_base(kind, tmp_path / "base")
    models.write_adapter(tmp_path / "base", tmp_path / "adapter", kind)
    with pytest.raises(remerge.RemergeError, match=said):
        remerge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", to="fp8")
    assert not (tmp_path / "out").exists()
