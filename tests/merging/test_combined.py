"""Combined steps: the same bytes however they are computed, and beside all else adapters do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, OFTConfig
from safetensors.torch import load_file, save_file

import remerge
from remerge.adapters.deltas import Change, Factor, LowRank, ReplacedRows, Window
from remerge.merging import combined
from remerge.merging.methods.method import Joint, Term
from remerge.merging.methods.weighted import Weighted
from remerge.merging.scope import Scope
from tests import tiny
from tests.adapters.tuners import against_peft
from tests.merging import adapted

# Every method with a rule on full deltas, in its costliest form.
METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ties": ("ties", {"density": 0.3}),
    "ties-model": ("ties", {"density": 0.3, "scope": "model"}),
    "prune": ("magnitude_prune", {"density": 0.2}),
    "breadcrumbs": ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    "breadcrumbs-model": ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "scope": "model"}),
    "dare": ("dare_ties", {"density": 0.5}),
    "dare-l1": ("dare_linear", {"density": 0.5, "rescale": "l1"}),
    "della": ("della", {"density": 0.5, "epsilon": 0.2}),
    "sce": ("sce", {"select_topk": 0.3}),
    "model-stock": ("model_stock", {"filter_wise": True}),
    "slerp": ("slerp", {"t": 0.3}),
    "nuslerp": ("nuslerp", {"row_wise": True}),
    "consensus": ("consensus", {}),
}
LONG, TALL = "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.q_proj.weight"
SHAPES = {LONG: (3, 30_001), TALL: (203, 1151)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 base with tensors of more than a chunk, and two adapters, one with DoRA."""
    path = tmp_path_factory.mktemp("combined")
    (path / "base").mkdir()
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    base[TALL].view(-1)[::97] = -0.0
    save_file({n: v.bfloat16() for n, v in base.items()}, path / "base" / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (path / "base" / "config.json").write_text(json.dumps(config))
    for number, (rank, dora) in enumerate([(5, False), (3, True)]):
        tensors: dict[str, torch.Tensor] = {}
        for name, (rows, columns) in SHAPES.items():
            key = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
            if dora:
                magnitude = torch.rand(rows, generator=generator) + columns**0.5
                tensors[f"{key}.lora_magnitude_vector"] = magnitude
        (path / f"adapter{number}").mkdir()
        save_file(tensors, path / f"adapter{number}" / "adapter_model.safetensors")
        asked = {"peft_type": "LORA", "r": rank, "lora_alpha": 2, "use_dora": dora}
        asked |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "base"}
        (path / f"adapter{number}" / "adapter_config.json").write_text(json.dumps(asked))
    return path


def options_of(case: str) -> dict[str, Any]:
    method, parameters = METHODS[case]
    return {"method": method, "parameters": parameters}


def opened(place: Path, case: str) -> Any:
    adapters = [place / "adapter0", place / "adapter1"]
    return remerge.open_merged(place / "base", adapters, **options_of(case))


@pytest.mark.parametrize("case", METHODS)
def test_the_same_bits_by_any_rows_and_any_tiles(
    place: Path, case: str, monkeypatch: pytest.MonkeyPatch
):
    with opened(place, case) as merged:
        whole = {name: merged[name][...] for name in SHAPES}
    assert not torch.equal(whole[TALL], load_file(place / "base" / "model.safetensors")[TALL])
    with opened(place, case) as merged:
        for name in SHAPES:
            ends = [*range(0, SHAPES[name][0], 29), SHAPES[name][0]]
            parts = [merged[name][a:b] for a, b in pairwise(ends)]
            assert torch.equal(torch.cat(parts), whole[name])
    with opened(place, case) as merged:
        # Parts of rows, as chunks of a file cut them.
        plan = merged.plans[TALL]
        parts = [merged.read_elements(plan, at, 30_011) for at in range(0, 210_000, 30_011)]
        assert torch.equal(torch.cat(parts), whole[TALL].reshape(-1)[: 7 * 30_011])
    monkeypatch.setattr(combined, "_ELEMENTS", 9001)
    with opened(place, case) as merged:
        for name in SHAPES:
            assert torch.equal(merged[name][...], whole[name])


@pytest.mark.parametrize("case", ["ties-model", "dare-l1", "della", "sce", "slerp"])
def test_the_same_files_for_any_threads_and_memory(place: Path, case: str, tmp_path: Path):
    adapters = [place / "adapter0", place / "adapter1"]
    options = options_of(case)
    remerge.merge(
        place / "base", adapters, tmp_path / "a", threads=1, max_memory="512MiB", **options
    )
    remerge.merge(place / "base", adapters, tmp_path / "b", threads=4, max_memory="2GiB", **options)
    assert tiny.files_of(tmp_path / "a") == tiny.files_of(tmp_path / "b")
    remerge.verify(tmp_path / "b", threads=3)
    with opened(place, case) as merged:
        written = load_file(tmp_path / "a" / "model.safetensors")
        assert torch.equal(merged[TALL][...], written[TALL])


def test_preparations_are_kept_and_taken_up_again(place: Path, tmp_path: Path):
    """What a resumed run reads is what the first one measured, of every kind of number."""
    from remerge.merging import preparations

    for case in METHODS:
        with opened(place, case) as merged:
            for name in SHAPES:
                merged[name][:1]
            kept = dict(merged.prepared)
        preparations.save(tmp_path / case, kept)
        steps = {name: len(numbers) for name, numbers in kept.items()}
        restored = preparations.restore(tmp_path / case, steps)
        assert json.dumps(_plain(restored)) == json.dumps(_plain(kept))


def _plain(found: Any) -> Any:
    return {
        name: [{key: v.tolist() for key, v in sorted(numbers.items())} for numbers in steps]
        for name, steps in sorted(found.items())
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of a tiny Llama: OFT, LoRA with a saved head, tokens, and LoRA on the head."""
    path = tmp_path_factory.mktemp("llama")
    base = against_peft.base_of("llama")
    made: dict[str, Any] = {
        "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj", "down_proj"]),
        "saved": LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "head": LoraConfig(r=2, target_modules=["q_proj", "lm_head", "embed_tokens"]),
        "tokens": LoraConfig(
            r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 7]}
        ),
    }
    for seed, (name, config) in enumerate(made.items()):
        against_peft.train(against_peft.model_of("llama", base), config, path / name, seed)
    return path


HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def read(llama: Path, *adapters: str, **options: Any) -> dict[str, torch.Tensor]:
    paths = [llama / name for name in adapters]
    base = against_peft.base_of("llama")
    with remerge.open_merged(base, paths, dtype="float32", **options) as merged:
        return {name: merged[name][...].double() for name in merged}


def base_values() -> dict[str, torch.Tensor]:
    found = load_file(against_peft.base_of("llama") / "model.safetensors")
    return {name: value.double() for name, value in found.items()}


def alone(llama: Path, adapter: str) -> dict[str, torch.Tensor]:
    """One adapter merged by PEFT."""
    base = against_peft.base_of("llama")
    found = against_peft.peft_merged("llama", base, llama / adapter, torch.float32)
    return {name: value.double() for name, value in found.items()}


def test_rotations_are_combined_as_what_they_do_to_the_base(llama: Path):
    base = base_values()
    rotated, added = alone(llama, "oft"), alone(llama, "saved")
    merged = read(llama, "oft", "saved", method="ties", weights=[0.5, 0.25])
    for name in (QUERY, "model.layers.1.mlp.down_proj.weight"):
        deltas = torch.stack([rotated[name] - base[name], added[name] - base[name]])
        weighted = deltas * torch.tensor([0.5, 0.25]).view(2, 1, 1)
        agree = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
        divisor = (agree * torch.tensor([0.5, 0.25]).view(2, 1, 1)).sum(0).clamp(min=0.25)
        change = (weighted * agree).sum(0) / divisor
        # Where float32 sums of PEFT's decide a sign otherwise, both are near zero.
        assert (merged[name] - base[name] - change).abs().median() < 1e-6
        assert ((merged[name] - base[name] - change).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("method", ["ties", "della", "sce", "dare_ties", "consensus"])
def test_rotated_blocks_of_rows_by_any_rows(
    llama: Path, method: str, monkeypatch: pytest.MonkeyPatch
):
    base = against_peft.base_of("llama")
    density = {"density": 0.6} if method in ("ties", "della", "dare_ties") else {}
    options: dict[str, Any] = {"method": method, "parameters": density}
    whole = read(llama, "oft", "saved", **options)
    paths = [llama / "oft", llama / "saved"]
    with remerge.open_merged(base, paths, dtype="float32", **options) as merged:
        for name in (QUERY, "model.layers.0.mlp.down_proj.weight"):
            rows = [merged[name][row : row + 1].double() for row in range(len(merged[name]))]
            np.testing.assert_allclose(torch.cat(rows), whole[name], rtol=1e-6, atol=1e-8)
    # One row at a time, where a block needs four.
    monkeypatch.setattr(combined, "_ELEMENTS", 50)
    for name, values in read(llama, "oft", "saved", **options).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["sum", "ties", "dare_linear", "slerp", "model_stock"])
def test_a_saved_head_takes_the_others_delta_on_top(llama: Path, method: str):
    """The head of one adapter is taken as it is; the other's delta is combined with zero."""
    base = base_values()
    saved, other = alone(llama, "saved"), alone(llama, "head")
    merged = read(llama, "saved", "head", method=method)
    delta = other[HEAD] - base[HEAD]
    if method == "slerp":
        one, two = saved[HEAD], saved[HEAD] + delta
        cosine = torch.nn.functional.cosine_similarity(one.view(1, -1), two.view(1, -1))
        angle = torch.acos(cosine)
        turned = torch.sin(angle / 2) / torch.sin(angle) * (one + two)
        expected = (one + two) / 2 if cosine > 0.9995 else turned
    else:
        expected = saved[HEAD] + (0 if method == "model_stock" else delta)
    np.testing.assert_allclose(merged[HEAD], expected, atol=2e-6)


@pytest.mark.parametrize("method", ["ties", "consensus", "slerp"])
def test_trained_tokens_stand_and_other_rows_are_combined(llama: Path, method: str):
    base = base_values()
    tokens, other = alone(llama, "tokens"), alone(llama, "head")
    parameters = {"agreement": 1} if method == "consensus" else {}
    merged = read(llama, "tokens", "head", method=method, parameters=parameters)
    delta = other[EMBED] - base[EMBED]
    if method == "slerp":
        started = torch.where(
            (tokens[EMBED] != base[EMBED]).any(1, keepdim=True), tokens[EMBED], base[EMBED]
        )
        one, two = started, started + delta
        cosine = torch.nn.functional.cosine_similarity(one.view(1, -1), two.view(1, -1))
        angle = torch.acos(cosine)
        assert cosine < 0.9995
        expected = torch.sin(angle / 2) / torch.sin(angle) * (one + two)
    else:
        expected = tokens[EMBED] + delta
    np.testing.assert_allclose(merged[EMBED], expected, atol=2e-6)


@pytest.mark.parametrize("method", ["sum", "ties", "slerp"])
def test_replaced_values_alone_keep_their_bits(llama: Path, tmp_path: Path, method: str):
    """Also -0.0, which an addition of zero would lose, and rows that a delta leaves alone."""
    shutil.copytree(llama / "tokens", tmp_path / "tokens")
    shutil.copytree(llama / "saved", tmp_path / "saved")
    for name, end in (
        ("tokens", "token_adapter.trainable_tokens_delta"),
        ("saved", "lm_head.weight"),
    ):
        file = tmp_path / name / "adapter_model.safetensors"
        tensors = load_file(file)
        key = next(key for key in tensors if key.endswith(end))
        tensors[key].view(-1)[::5] = -0.0
        save_file(tensors, file)
    base = against_peft.base_of("llama")
    paths = [tmp_path / "saved", tmp_path / "tokens"]
    with remerge.open_merged(base, paths, method=method) as merged:
        head, rows = merged[HEAD][...], merged[EMBED][...]
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    expected = next(v for k, v in tensors.items() if k.endswith("lm_head.weight"))
    assert torch.equal(head.view(torch.int32), expected.view(torch.int32))
    assert torch.signbit(head.view(-1)[::5]).all()
    assert torch.signbit(rows[3]).any()


def test_replaced_values_keep_their_bits_where_the_method_changes_nothing(
    llama: Path, tmp_path: Path
):
    shutil.copytree(llama / "saved", tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lm_head.weight"))
    tensors[key].view(-1)[::5] = -0.0
    save_file(tensors, file)
    # Two deltas of which one is zero are at right angles: Model Stock stays where it is.
    paths = [tmp_path / "saved", llama / "head"]
    with remerge.open_merged(against_peft.base_of("llama"), paths, method="model_stock") as merged:
        assert torch.equal(merged[HEAD][...].view(torch.int32), tensors[key].view(torch.int32))


def test_a_delta_is_zero_in_rows_that_its_adapter_replaces():
    def factor(values: torch.Tensor) -> Factor:
        return Factor((values.shape[0], values.shape[1]), lambda: values.double())

    left, right, rows = torch.rand(5, 2) + 1, torch.rand(2, 3) + 1, torch.rand(2, 3)
    steps = (LowRank(factor(left), factor(right), 1.0), ReplacedRows(factor(rows), (1, 4)))
    change = Change("w", (5, 3), "F32", (5, 3), steps)
    term = Term.of(0, 1.0, change)
    joint = Joint("w", (5, 3), "F32", (term,), (steps[1],), (change,), Scope())
    step = combined.Combined(joint, Weighted("sum", (1.0,)))
    tile = torch.full((4, 3), 2.0, dtype=torch.float64)
    step.apply(tile, Window(range(1, 5), range(3)), lambda f: f.read(), {})
    expected = torch.full((5, 3), 2.0) + left @ right
    expected[[1, 4]] = rows
    np.testing.assert_allclose(tile, expected[1:], rtol=1e-6)


def test_an_adapter_of_weight_zero_replaces_nothing(llama: Path):
    base = base_values()
    merged = read(llama, "head", "saved", method="ties", weights=[1.0, 0.0])
    delta = alone(llama, "head")[HEAD] - base[HEAD]
    np.testing.assert_allclose(merged[HEAD], base[HEAD] + delta, atol=2e-6)
    merged = read(llama, "saved", "oft", method="sum", weights=[0.0, 1.0])
    assert torch.equal(merged[HEAD], base[HEAD])


def test_a_threshold_of_the_model_where_a_tensor_has_no_base(llama: Path, tmp_path: Path):
    """Whichever is asked first: of a new vocabulary nothing is left of the base, but DoRA beside it
    needs the base of its own tensors."""
    base = adapted.write_base(tmp_path / "base", torch.float32, tied=True)
    options: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}
    paths = [
        adapted.write_adapter(base, tmp_path / f"{seed}", LoraConfig(**options), seed, rows=3)
        for seed in (1, 2)
    ]
    dora = LoraConfig(r=2, target_modules=["k_proj"], use_dora=True)
    paths.append(adapted.write_adapter(base, tmp_path / "dora", dora, 3))
    asked: dict[str, Any] = {"method": "ties", "prefer": ["1"]}
    asked["parameters"] = {"density": 0.3, "scope": "model"}
    key = "model.layers.0.self_attn.k_proj.weight"
    with remerge.open_merged(base, paths, **asked) as merged:
        new = merged[EMBED][...]
        before = merged[key][...]
    with remerge.open_merged(base, paths, **asked) as merged:
        assert torch.equal(merged[key][...], before)
        assert torch.equal(merged[EMBED][...], new)
    assert len(new) == adapted.VOCABULARY + 3
