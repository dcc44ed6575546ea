"""MiSS, GraLoRA, HiRA and SHiRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import GraloraConfig, HiraConfig, MissConfig, ShiraConfig

from tests.adapters.tuners.against_peft import (
    Both,
    assert_independent,
    assert_name_may_stay,
    assert_refused,
    assert_same,
    edit,
    merge_both,
    merge_saved,
    our_merged,
    save_trained,
)

DTYPES = (torch.float32, torch.bfloat16)
Q = "base_model.model.model.layers.0.self_attn.q_proj."
LINEAR = ("llama", ["q_proj", "k_proj", "down_proj", "up_proj"])
CONV1D_LINEAR = ("gpt2", ["c_attn", "c_proj"])


def check(both: Both, out: Path) -> None:
    assert_same(both)
    # Memory and rows have nothing to do with the dtype: once is enough.
    if all(value.dtype != torch.bfloat16 for value in both.ours.values()):
        assert_independent(both, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"r": 8},
        {"r": 7},
        {"r": 7, "init_weights": False},
        {"r": 4, "init_weights": "bat"},
        {"r": 4, "init_weights": "mini", "mini_r": 4},
        {"r": 5, "init_weights": "mini", "mini_r": 2},
    ],
    ids=str,
)
def test_miss(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    kind, targets = LINEAR
    check(
        merge_both(MissConfig(target_modules=targets, **options), kind, tmp_path, dtype), tmp_path
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "gralora_k": 2},
        {"r": 8, "gralora_k": 4, "hybrid_r": 3, "alpha": 5},
        {"r": 3, "gralora_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(("kind", "targets"), [LINEAR, CONV1D_LINEAR])
def test_gralora(
    kind: str, targets: list[str], options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    config = GraloraConfig(target_modules=targets, **options)
    check(merge_both(config, kind, tmp_path, dtype, noise=0.1), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        LINEAR,
        CONV1D_LINEAR,
        ("resnet", ["convolution"]),
        ("whisper", ["conv1", "conv2"]),
        ("llama", ["embed_tokens"]),
    ],
)
def test_hira(kind: str, targets: list[str], dtype: torch.dtype, tmp_path: Path) -> None:
    config = HiraConfig(r=3, target_modules=targets, rank_pattern={"k_proj": 2})
    check(merge_both(config, kind, tmp_path, dtype, wide=True), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shira(dtype: torch.dtype, tmp_path: Path) -> None:
    kind, targets = LINEAR
    config = ShiraConfig(r=3, target_modules=targets, random_seed=5)
    check(merge_both(config, kind, tmp_path, dtype), tmp_path)


def test_shira_with_places_stored_as_floats(tmp_path: Path) -> None:
    both = merge_both(ShiraConfig(r=3, target_modules=["q_proj"]), "llama", tmp_path)
    edit(
        both.adapter_path,
        lambda tensors: {n: v.float() if "indices" in n else v for n, v in tensors.items()},
    )
    assert_name_may_stay(both, tmp_path, "shira_weight", "shira_indices")


@given(
    rank=st.integers(1, 12),
    blocks=st.sampled_from([1, 2, 3, 4, 6]),
    plain=st.integers(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sizes(
    rank: int, blocks: int, plain: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    targets = ["k_proj"]
    for config in (
        MissConfig(target_modules=targets, r=rank),
        MissConfig(target_modules=targets, r=blocks, init_weights="bat"),
        GraloraConfig(target_modules=targets, r=blocks * 2, gralora_k=blocks, hybrid_r=plain),
        HiraConfig(target_modules=targets, r=rank),
        ShiraConfig(target_modules=targets, r=min(rank, 7)),
    ):
        assert_same(merge_both(config, "llama", tmp_path_factory.mktemp("any"), seed=seed))


CONFIGS = {
    "miss": MissConfig(target_modules=["q_proj"], r=8),
    "bat": MissConfig(target_modules=["q_proj"], r=8, init_weights="bat"),
    "mini": MissConfig(target_modules=["q_proj"], r=8, init_weights="mini", mini_r=4),
    "gralora": GraloraConfig(target_modules=["q_proj"], r=4, hybrid_r=2),
    "hira": HiraConfig(target_modules=["q_proj"], r=3),
    "shira": ShiraConfig(target_modules=["q_proj"], r=1),
}


@pytest.mark.parametrize(
    ("form", "ends"),
    [
        ("miss", ["miss_block"]),
        ("gralora", ["gralora_A_general", "gralora_B_general", "gralora_A", "gralora_B"]),
        ("hira", ["hira_A", "hira_B"]),
        ("shira", ["shira_weight"]),
    ],
)
def test_the_adapters_name_left_in_keys(form: str, ends: list[str], tmp_path: Path) -> None:
    assert_name_may_stay(merge_both(CONFIGS[form], "llama", tmp_path), tmp_path, *ends)


@pytest.mark.parametrize("init", [True, "bat"])
def test_bone_is_miss(init: bool | str, tmp_path: Path) -> None:
    config = MissConfig(target_modules=["q_proj", "down_proj"], r=4, init_weights=init)
    both = merge_both(config, "llama", tmp_path)
    edit(
        both.adapter_path,
        lambda held: {n.replace(".miss_", ".bone_"): v for n, v in held.items()},
        peft_type="BONE",
    )
    for name, value in our_merged(both.base_path, both.adapter_path, tmp_path / "bone").items():
        assert torch.equal(value, both.ours[name]), name


@pytest.mark.parametrize(
    ("form", "end", "shape", "words"),
    [
        ("miss", "miss_block", (7, 24), ["(7, 24)", "rank 8"]),
        ("miss", "miss_block", (8, 23), ["(8, 23)", "(24, 24)"]),
        ("bat", "miss_block", (8, 24), ["(8, 24)", "rank 8"]),
        ("bat", "miss_block", (2, 8, 8), ["(2, 8, 8)", "(3, 8, 8)"]),
        ("mini", "miss_block", (8, 5), ["(8, 5)", "(8, 4)"]),
        ("gralora", "gralora_A", (2, 12, 3), ["(2, 12, 3)", "rank 4"]),
        ("gralora", "gralora_B", (2, 4, 11), ["(2, 4, 11)", "(2, 4, 12)"]),
        ("gralora", "gralora_A_general.weight", None, ["A_general is missing"]),
        ("gralora", "gralora_B_general.weight", (23, 2), ["(23, 2)", "(24, 2)"]),
        ("gralora", "gralora_C", (2, 2), ["gralora_C"]),
        ("hira", "hira_A", (4, 24), ["(4, 24)", "rank 3"]),
        ("hira", "hira_B", (23, 3), ["(23, 3)", "(24, 24)"]),
        ("hira", "hira_B", None, ["hira_B is missing"]),
        ("hira", "hira_embedding_A", (3, 24), ["hira_embedding_A"]),
        ("shira", "shira_weight", (49,), ["(49,)", "(48,)"]),
        ("shira", "shira_indices", (48, 2), ["(48, 2)", "(2, 48)"]),
        ("shira", "shira_indices", None, ["shira_indices is missing"]),
    ],
)
def test_misfits(
    form: str, end: str, shape: tuple[int, ...] | None, words: list[str], tmp_path: Path
) -> None:
    saved = save_trained(CONFIGS[form], "llama", tmp_path)
    rest = {} if shape is None else {Q + end: torch.ones(shape)}
    edit(saved.adapter_path, lambda t: {n: v for n, v in t.items() if n != Q + end} | rest)
    assert_refused(saved, tmp_path, Q, *words)


@pytest.mark.parametrize("place", [-1, 24, 2**31 - 1])
def test_places_outside_of_the_weight(place: int, tmp_path: Path) -> None:
    saved = save_trained(CONFIGS["shira"], "llama", tmp_path)

    def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[Q + "shira_indices"][1, 5] = place
        return tensors

    edit(saved.adapter_path, moved)
    assert_refused(saved, tmp_path, Q + "shira_indices", "(24, 24)")


def test_places_named_twice_add_up(tmp_path: Path) -> None:
    both = merge_both(CONFIGS["shira"], "llama", tmp_path)

    def doubled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[Q + "shira_indices"][:, 1] = tensors[Q + "shira_indices"][:, 0]
        return tensors

    edit(both.adapter_path, doubled)
    (tmp_path / "again").mkdir()
    assert_same(merge_saved("llama", both.base_path, both.adapter_path, tmp_path / "again"))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("miss", {"r": -1}),
        ("bat", {"r": 5}),
        ("mini", {"mini_r": 5}),
        ("mini", {"mini_r": 0}),
        ("gralora", {"gralora_k": 3}),
        ("gralora", {"gralora_k": 0}),
        ("gralora", {"hybrid_r": 0}),
        ("hira", {"rank_pattern": {"(": 3}}),
        ("shira", {"r": 2}),
    ],
)
def test_configurations_that_make_no_sense(
    form: str, options: dict[str, Any], tmp_path: Path
) -> None:
    saved = save_trained(CONFIGS[form], "llama", tmp_path)
    edit(saved.adapter_path, **options)
    assert_refused(saved, tmp_path)
