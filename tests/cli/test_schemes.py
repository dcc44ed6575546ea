"""`remerge merge --to fp8` and its like: options, what is refused, verifying, and being killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

import remerge
from remerge.cli import group
from remerge.merging.schemes.registry import SCHEMES
from tests import tiny
from tests.merging import quantised
from tests.merging.schemes import models
from tests.outputs.killing import run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("schemes")
    models.write_base("llama", root / "base")
    models.write_adapter(root / "base", root / "adapter", "llama")
    remerge.merge(root / "base", root / "adapter", root / "fp8", to="fp8")
    return root


def command(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def merge(place: Path, out: Path, *options: object) -> Result:
    return command("merge", place / "base", place / "adapter", "-o", out, *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "fp4"), "Choose safetensors, fp8, fp8-block, w8a8, nvfp4, adapter, gguf"),
        (("--to", "fp8", "--requantize", "same"), "cannot go with --requantize"),
        (("--to", "fp8", "--method", "sequential"), "cannot go with --method sequential"),
        (("--to", "fp8", "--via", "bfloat16"), "belongs to --to gguf"),
        (("--to", "fp8", "--tensor-type", "a=F16"), "belongs to --to gguf"),
        (("--ignore", "lm_head"), "belong to a scheme"),
        (("--quantize-experts",), "belong to a scheme"),
        (("--to", "adapter", "--ignore", "lm_head"), "belong to a scheme"),
        (("--to", "fp8", "--ignore", "re:("), "is no regular expression"),
        (("--to", "fp8", "--ignore", "nothing"), "matches no linear layer"),
        (("--to", "fp8", "--keep-float32", "nothing"), "matches no tensor"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    place: Path, tmp_path: Path, options: tuple[str, ...], said: str
):
    done = merge(place, tmp_path / "out", *options)
    assert isinstance(done.exception, remerge.UsageError), done.output
    assert said in f"{done.exception} {done.exception.hint}"
    assert not (tmp_path / "out").exists()


def test_a_recipe_says_the_same(place: Path, tmp_path: Path):
    recipe = {
        "base": str(place / "base"),
        "adapters": [str(place / "adapter")],
        "to": "w8a8",
        "ignore": ["re:.*k_proj"],
        "quantize-experts": False,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = command("merge", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "one")
    assert done.exit_code == 0, done.output
    assert merge(place, tmp_path / "two", "--to", "w8a8", "--ignore", "re:.*k_proj").exit_code == 0
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "two")
    # vLLM computes query, key and value as one.
    names = quantised.read(tmp_path / "one")
    held = {name.rpartition(".")[0] for name in names if name.endswith("_scale")}
    assert {module.rpartition(".")[2] for module in held} == {
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    ignore = models.stated(tmp_path / "one")["ignore"]
    assert {f"model.layers.0.self_attn.{each}_proj" for each in "qkv"} < set(ignore)


def test_the_dry_run_tells_what_is_written(place: Path, tmp_path: Path):
    planned = json.loads(
        merge(place, tmp_path / "out", "--to", "nvfp4", "--dry-run", "--json").stdout
    )
    assert not (tmp_path / "out").exists()
    made = json.loads(merge(place, tmp_path / "out", "--to", "nvfp4", "--json").stdout)
    assert made["merge_key"] == planned["merge_key"]
    files = {file["name"]: file["size"] for file in planned["files"]}
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert made["retention"]["overall"]["kept"] == pytest.approx(1, abs=0.1)
    assert made["quantize"] == "nvfp4"
    shown = merge(place, tmp_path / "out", "--to", "nvfp4", "--verbose").output
    assert "quantised" in shown and "14 x compressed-tensors float 4 bit" in shown


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"max_memory": "512MiB"}, {"max_shard_size": "50kB"}]
)
def test_resources_and_shards_change_no_value(
    place: Path, tmp_path: Path, name: str, options: dict[str, Any]
):
    remerge.merge(place / "base", place / "adapter", tmp_path / "one", to=name)
    remerge.merge(place / "base", place / "adapter", tmp_path / "two", to=name, **options)
    one, two = quantised.read(tmp_path / "one"), quantised.read(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(two[key].view(torch.uint8), tensor.view(torch.uint8)), key
    if "max_shard_size" in options:
        assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
        _, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "two", dtype="auto", output_loading_info=True
        )
        assert not any(info.values())
    remerge.verify(tmp_path / "two")


@pytest.mark.parametrize("suffix", ["weight", "weight_scale"])
def test_verify_finds_a_flipped_byte(place: Path, tmp_path: Path, suffix: str):
    out = tmp_path / "out"
    shutil.copytree(place / "fp8", out)
    inputs = {"base": place / "base", "adapter": place / "adapter"}
    remerge.verify(out, **inputs)
    file = out / "model.safetensors"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    name = f"model.layers.1.mlp.up_proj.{suffix}"
    start = json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
    content[8 + size + start + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(remerge.RemergeError, match=name):
        remerge.verify(out, **inputs)


@pytest.mark.slow
def test_killed_and_run_again(place: Path, tmp_path: Path):
    wanted = tiny.files_of(place / "fp8")
    out = tmp_path / "out"
    for point in (3, 7, 11, 15):
        assert run(place, out, point, to="fp8") == -9
        assert run(place, out, None, to="fp8") == 0
        assert tiny.files_of(out) == wanted
        shutil.rmtree(out)
        assert not list(tmp_path.iterdir())


def test_dtype_and_keep_float32_are_of_what_is_not_quantised(place: Path, tmp_path: Path):
    pattern = "model.layers.0.mlp.up_proj.weight"
    remerge.merge(
        place / "base",
        place / "adapter",
        tmp_path / "out",
        to="fp8",
        dtype="float16",
        keep_float32=[pattern],
    )
    found = quantised.read(tmp_path / "out")
    assert found[pattern].dtype == torch.float32
    # It is computed together with gate_proj.
    assert found["model.layers.0.mlp.gate_proj.weight"].dtype == torch.float16
    assert found["model.layers.0.mlp.down_proj.weight_scale"].dtype == torch.float16
    assert found["model.norm.weight"].dtype == torch.float16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "float16" in (config.get("dtype"), config.get("torch_dtype"))
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    assert torch.isfinite(model(torch.arange(9)[None]).logits).all()
    remerge.verify(tmp_path / "out")


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_a_quantised_base_in_another_format(place: Path, tmp_path: Path, name: str):
    quantised.quantise(
        place / "base", tmp_path / "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4"
    )
    remerge.merge(tmp_path / "nf4", place / "adapter", tmp_path / "plain")
    remerge.merge(tmp_path / "nf4", place / "adapter", tmp_path / "float32", dtype="float32")
    remerge.merge(tmp_path / "nf4", place / "adapter", tmp_path / "out", to=name)
    remerge.verify(tmp_path / "out")
    stated = models.stated(tmp_path / "out")
    assert stated["quant_method"] == "compressed-tensors"
    merged, found = quantised.read(tmp_path / "float32"), quantised.read(tmp_path / "out")
    module = "model.layers.1.mlp.down_proj"
    wanted = models.parts_of(module, merged, models.scheme_of(name), torch.bfloat16)
    for part, tensor in wanted.items():
        assert torch.equal(found[f"{module}.{part}"].view(torch.uint8), tensor.view(torch.uint8))
    assert not any("absmax" in key or "quant_state" in key for key in found)
    _, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(info.values())


def test_a_base_as_training_saw_it(place: Path, tmp_path: Path):
    quantised.quantise(
        place / "base", tmp_path / "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4"
    )
    remerge.merge(tmp_path / "nf4", place / "adapter", tmp_path / "real", to="fp8")
    remerge.merge(place / "base", place / "adapter", tmp_path / "seen", to="fp8", simulate="nf4")
    real, seen = quantised.read(tmp_path / "real"), quantised.read(tmp_path / "seen")
    for key, tensor in real.items():
        assert torch.equal(seen[key].view(torch.uint8), tensor.view(torch.uint8)), key


def test_the_merge_is_read_before_it_is_written(place: Path):
    wanted = quantised.read(place / "fp8")
    with remerge.open_merged(place / "base", place / "adapter", to="fp8") as merged:
        for key, tensor in wanted.items():
            assert torch.equal(merged[key][...].view(torch.uint8), tensor.view(torch.uint8)), key
        model = merged.load_model()
    loaded = AutoModelForCausalLM.from_pretrained(place / "fp8", dtype="auto")
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, loaded(ids).logits)
