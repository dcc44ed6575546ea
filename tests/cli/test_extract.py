"""`remerge extract`: what PEFT made is found again, loads in PEFT and merges back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)

import remerge
from remerge.errors import RemergeError, UsageError
from tests import tiny
from tests.adapters.lora import models
from tests.cli.test_cli import remerge as command
from tests.corpus import arch_text  # noqa: F401  (fills the list)
from tests.corpus.architectures import ARCHS

EXPERTS = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
MADE: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "llama": (models.llama, {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}),
    "tied": (lambda: models.llama(tied=True), {"target_modules": ["q_proj", "embed_tokens"]}),
    "gpt2": (models.gpt2, {"target_modules": ["c_attn", "c_proj", "wte"]}),
    "fused": (models.phi3, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "experts": (
        models.qwen3_moe,
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "transposed experts": (
        models.gpt_oss,
        {"target_modules": ["v_proj"], "target_parameters": EXPERTS[:2]},
    ),
}


def saved(model: PreTrainedModel, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def made(place: Path, case: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """A base, and the model that PEFT merges a random adapter of rank 3 into."""
    build, targets = MADE[case]
    model = build().to(dtype)
    base = saved(model, place / "base")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, init_lora_weights=False, task_type="CAUSAL_LM", **targets
    )
    merged: Any = peft.get_peft_model(model, config).merge_and_unload()
    return base, saved(merged, place / "merged")


def loaded(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def in_peft(base: Path, adapter: Path) -> Any:
    model = loaded(base)
    size = json.loads((adapter.parent / "merged" / "config.json").read_text())["vocab_size"]
    if model.config.vocab_size != size:
        model.resize_token_embeddings(size)
    return peft.PeftModel.from_pretrained(model, str(adapter))


def near(one: torch.Tensor, other: torch.Tensor, steps: float) -> bool:
    """Whether no element is off by more than so many units in the last place of the largest."""
    unit = torch.finfo(other.dtype).eps * float(other.double().abs().max())
    return float((one.double() - other.double()).abs().max()) <= steps * unit


def check_round_trip(base: Path, merged: Path, adapter: Path, steps: float = 1.0) -> None:
    """Merged by remerge and by PEFT, the adapter gives the model that it was found in."""
    again = adapter.parent / "again"
    remerge.merge(base, adapter, again)
    found, wanted = tiny.read_tensors(again), tiny.read_tensors(merged)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert near(found[name], tensor, steps), name
    state = in_peft(base, adapter).merge_and_unload().state_dict()
    for name, tensor in loaded(merged).state_dict().items():
        assert near(state[name], tensor, steps), name


@pytest.mark.parametrize("case", MADE)
def test_what_peft_merged_is_found_again(tmp_path: Path, case: str):
    base, merged = made(tmp_path, case)
    before = {path: tiny.files_of(path) for path in (base, merged)}
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=3)
    assert result.manifest.explained_energy > 0.999
    assert (result.manifest.saved_whole, result.manifest.left_out) == ((), ())
    check_round_trip(base, merged, tmp_path / "adapter")
    assert {path: tiny.files_of(path) for path in before} == before


def test_in_float32_nothing_is_lost(tmp_path: Path):
    base, merged = made(tmp_path, "llama", torch.float32)
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=3)
    assert result.manifest.explained_energy == pytest.approx(1.0, abs=1e-9)
    check_round_trip(base, merged, tmp_path / "adapter", steps=4)


def test_reported_energy_is_that_of_the_written_factors(tmp_path: Path):
    base, merged = made(tmp_path, "llama", torch.float32)
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=2)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    change = (
        tiny.read_tensors(merged)[f"{name}.weight"] - tiny.read_tensors(base)[f"{name}.weight"]
    ).double()
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    assert torch.allclose(b.norm(dim=0), a.norm(dim=1))
    values = torch.linalg.svdvals(change)
    lost = float((change - b @ a).norm())
    assert lost <= 1.01 * float(values[2:].norm()) + 1e-6
    record = next(r for r in result.manifest.tensors if r.name == f"{name}.weight")
    assert record.relative_error == pytest.approx(lost / float(change.norm()), rel=1e-3)
    assert record.explained_energy == pytest.approx(
        1 - (lost / float(change.norm())) ** 2, abs=1e-6
    )


@torch.no_grad()
def everything(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.05
        parameter += noise.to(parameter.dtype)


@torch.no_grad()
def norms(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter += 0.25


@torch.no_grad()
def half_a_norm(model: PreTrainedModel) -> None:
    model.get_parameter("transformer.h.0.ln_1.weight").add_(0.25)
    model.get_parameter("transformer.h.1.attn.c_attn.weight").mul_(1.5)


def grown(model: PreTrainedModel) -> None:
    everything(model)
    model.resize_token_embeddings(43, mean_resizing=False)


@torch.no_grad()
def untied(model: Any) -> None:
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 0.1)
    model.model.layers[0].mlp.down_proj.weight += 0.01


CHANGES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[Any], None]]] = {
    "biases": (lambda: models.llama(attention_bias=True, mlp_bias=True), everything),
    "norms alone": (models.llama, norms),
    "gpt2": (models.gpt2, everything),
    "half a norm": (models.gpt2, half_a_norm),
    "new tokens": (models.llama, grown),
    "new tied tokens": (lambda: models.llama(tied=True), grown),
    "untied head": (lambda: models.llama(tied=True), untied),
    "sinks": (models.gpt_oss, everything),
}


def changed(place: Path, case: str) -> tuple[Path, Path]:
    build, change = CHANGES[case]
    model = build()
    base = saved(model, place / "base")
    change(model)
    return base, saved(model, place / "merged")


@pytest.mark.parametrize("case", CHANGES)
def test_what_factors_cannot_say_goes_in_whole(tmp_path: Path, case: str):
    base, merged = changed(tmp_path, case)
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=64)
    assert result.manifest.saved_whole
    assert any(note.startswith("Saved whole") for note in result.manifest.notes)
    check_round_trip(base, merged, tmp_path / "adapter", steps=16)


def test_the_tokenizer_of_new_tokens_comes_along(tmp_path: Path):
    base, merged = changed(tmp_path, "new tokens")
    (merged / "tokenizer.json").write_text('{"new": 43}')
    (merged / "additional_chat_templates").mkdir()
    (merged / "additional_chat_templates" / "tool.jinja").write_text("t")
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=64)
    remerge.merge(base, tmp_path / "adapter", tmp_path / "again")
    for name in ("tokenizer.json", "additional_chat_templates/tool.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (merged / name).read_bytes()
        assert name in [record.name for record in result.manifest.outputs]


def test_a_tokenizer_of_the_base_s_size_stays_where_it_is(tmp_path: Path):
    base, merged = made(tmp_path, "llama")
    (merged / "tokenizer.json").write_text("{}")
    remerge.extract(base, merged, tmp_path / "adapter", rank=3)
    assert not (tmp_path / "adapter" / "tokenizer.json").exists()


def test_a_rank_that_says_little_is_remarked_on(tmp_path: Path):
    base, merged = made(tmp_path, "llama")
    small = remerge.extract(base, merged, tmp_path / "small", rank=1).manifest
    whole = remerge.extract(base, merged, tmp_path / "whole", rank=3).manifest
    assert f"{small.explained_energy:.1%}" in small.notes[0]
    assert "larger --rank" in small.notes[0]
    assert not any("--rank" in note for note in whole.notes)


def test_shared_experts_stay_beside_experts(tmp_path: Path):
    """PEFT takes layers of these names for experts of older files, and would not target them."""
    torch.manual_seed(1)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**ARCHS["deepseek_v3"].config))
    base = saved(model, tmp_path / "base")
    everything(model)
    merged = saved(model, tmp_path / "merged")
    remerge.extract(base, merged, tmp_path / "adapter", rank=64, energy=0.95)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    remerge.merge(base, adapter, out)
    state, again = in_peft(base, adapter).merge_and_unload().state_dict(), loaded(out).state_dict()
    assert all(near(state[name], tensor, 16) for name, tensor in again.items())


def test_energy_gives_each_tensor_its_rank(tmp_path: Path):
    base, merged = changed(tmp_path, "biases")
    result = remerge.extract(base, merged, tmp_path / "adapter", energy=0.9, rank=12)
    ranks = {record.rank for record in result.manifest.tensors}
    assert len(ranks) > 1
    for record in result.manifest.tensors:
        assert record.explained_energy >= 0.9 or record.rank == 12
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(ranks)
    assert config["rank_pattern"] == config["alpha_pattern"]
    remerge.merge(base, tmp_path / "adapter", tmp_path / "out")
    state = in_peft(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, tensor in loaded(tmp_path / "out").state_dict().items():
        assert near(state[name], tensor, 16), name


def test_only_what_changed_is_targeted(tmp_path: Path):
    model = models.llama()
    base = saved(model, tmp_path / "base")
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(1.5)
    merged = saved(model, tmp_path / "merged")
    result = remerge.extract(base, merged, tmp_path / "adapter", rank=2)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "base")
    assert len(result.manifest.tensors) == 1
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert len(keys) == 2


def test_resources_change_no_byte(tmp_path: Path):
    base, merged = made(tmp_path, "experts")
    places = [tmp_path / name for name in ("one", "two", "three")]
    options: list[dict[str, Any]] = [{"threads": 1}, {"threads": 4}, {"max_memory": "512MiB"}]
    for place, option in zip(places, options, strict=True):
        remerge.extract(base, merged, place, rank=3, **option)
    assert tiny.files_of(places[0]) == tiny.files_of(places[1]) == tiny.files_of(places[2])
    manifest = (places[0] / "remerge.json").read_text()
    assert str(tmp_path) not in manifest
    assert json.loads(manifest)["kind"] == "extraction"


def test_factors_in_bfloat16(tmp_path: Path):
    base, merged = made(tmp_path, "llama")
    remerge.extract(base, merged, tmp_path / "adapter", rank=3, dtype="bfloat16")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in factors.values()} == {torch.bfloat16}
    remerge.merge(base, tmp_path / "adapter", tmp_path / "out")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories ``base``, ``merged`` (all of it changed) and some that cannot be used."""
    place = tmp_path_factory.mktemp("pair")
    base, merged = changed(place, "norms alone")
    everything(model := models.llama())
    saved(model, merged)
    saved(models.gpt2(), place / "gpt2")
    saved(models.llama(head_dim=4), place / "narrow")
    for name in ("nan", "short", "renamed"):
        shutil.copytree(merged, place / name)
    tensors = load_file(merged / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, place / "nan" / "model.safetensors", metadata={"format": "pt"})
    tensors = load_file(merged / "model.safetensors")
    tensors["strange.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, place / "renamed" / "model.safetensors", metadata={"format": "pt"})
    whole = (base / "model.safetensors").read_bytes()
    (place / "short" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return place


@pytest.mark.parametrize(
    ("merged", "options", "code", "text"),
    [
        ("gpt2", {}, 3, "GPT2LMHeadModel"),
        ("narrow", {}, 3, "is [16, 16] in the base and [8, 16]"),
        ("nan", {}, 3, "up_proj.weight holds NaN"),
        ("short", {}, 3, "not a valid safetensors"),
        ("renamed", {}, 3, "up_proj.weight (merged model)"),
        ("merged", {"strict": True}, 3, "without --strict"),
        ("merged", {"rank": None}, 2, "how large"),
        ("merged", {"rank": 0}, 2, "no rank"),
        ("merged", {"rank": -3}, 2, "no rank"),
        ("merged", {"energy": 1.5}, 2, "no share"),
        ("merged", {"energy": float("nan")}, 2, "no share"),
        ("merged", {"dtype": "keep"}, 2, "float32"),
        ("merged", {"max_memory": "1MiB"}, 2, "512MiB"),
        ("none", {}, 3, "neither"),
    ],
)
def test_refusals(
    pair: Path, tmp_path: Path, merged: str, options: dict[str, Any], code: int, text: str
):
    with pytest.raises(RemergeError) as caught:
        remerge.extract(pair / "base", pair / merged, tmp_path / "out", **{"rank": 4, **options})
    assert caught.value.exit_code == code
    assert text.lower() in str(caught.value).lower()
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_way_stays(pair: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "work.txt").write_text("mine")
    with pytest.raises(UsageError):
        remerge.extract(pair / "base", pair / "merged", tmp_path / "out", rank=4)
    with pytest.raises(UsageError):
        remerge.extract(pair / "base", pair / "merged", pair / "base" / "out", rank=4)
    assert (tmp_path / "out" / "work.txt").read_text() == "mine"
    remerge.extract(pair / "base", pair / "merged", tmp_path / "out", rank=4, overwrite=True)
    assert not (tmp_path / "out" / "work.txt").exists()


def test_a_sketch_over_the_budget_is_refused(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("remerge.merging.comparing.HELD", 2**30 - 2**20)
    with pytest.raises(UsageError, match="--max-memory 2GiB"):
        remerge.extract(pair / "base", pair / "merged", tmp_path / "out", rank=4)
    assert not list(tmp_path.iterdir())


def test_without_modules_to_save(pair: Path, tmp_path: Path):
    found = remerge.extract(
        pair / "base", pair / "merged", tmp_path / "out", rank=4, modules_to_save=False
    )
    assert "model.norm.weight" in found.manifest.left_out
    assert found.manifest.saved_whole == ()
    assert any("Left out, as asked" in note for note in found.manifest.notes)
    keys = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert not any("norm" in key for key in keys)


def test_on_the_command_line(pair: Path, tmp_path: Path):
    rank = ("--rank", "4", "-o", tmp_path / "out")
    same = command("extract", pair / "base", pair / "base", *rank, "--json")
    assert same.returncode == 3
    assert "nothing to extract" in json.loads(same.stdout)["error"]["what"]
    assert not list(tmp_path.iterdir())
    shown = command("extract", pair / "base", pair / "merged", *rank)
    assert shown.returncode == 0, shown.stderr
    assert "of the change's energy" in shown.stdout
    assert shown.stdout.count("at rank 4") == 5
    done = command("extract", pair / "base", pair / "merged", *rank, "--overwrite", "--json")
    document = json.loads(done.stdout)
    assert document["peak_memory_bytes"] > 0
    assert [record["rank"] for record in document["tensors"]] == [4] * len(document["tensors"])
