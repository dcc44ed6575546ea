"""LoHa and LoKr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig

from tests.adapters.tuners.against_peft import (
    assert_independent,
    assert_name_may_stay,
    assert_refused,
    assert_same,
    edit,
    merge_both,
    save_trained,
)

DTYPES = (torch.float32, torch.bfloat16)
LINEAR = ("llama", ["q_proj", "k_proj", "down_proj"])
CONV2D = ("resnet", ["convolution"])
CONV1D = ("whisper", ["conv1", "conv2"])
UP = "base_model.model.model.layers.0.mlp.up_proj."


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(("kind", "targets"), [LINEAR, CONV2D, CONV1D])
def test_loha(
    kind: str, targets: list[str], effective: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = LoHaConfig(r=3, alpha=5, target_modules=targets, use_effective_conv2d=effective)
    both = merge_both(config, kind, tmp_path, dtype)
    assert_same(both)
    if dtype == torch.float32:
        assert_independent(both, tmp_path)


# A rank that factors the right side, and one that leaves it whole.
@pytest.mark.parametrize("rank", [2, 12])
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(("kind", "targets"), [LINEAR, CONV2D, CONV1D])
def test_lokr(kind: str, targets: list[str], effective: bool, rank: int, tmp_path: Path) -> None:
    config = LoKrConfig(r=rank, alpha=5, target_modules=targets, use_effective_conv2d=effective)
    both = merge_both(config, kind, tmp_path)
    assert_same(both)
    assert_independent(both, tmp_path)


@pytest.mark.parametrize(("kind", "targets"), [LINEAR, CONV2D, CONV1D])
def test_lokr_in_bfloat16(kind: str, targets: list[str], tmp_path: Path) -> None:
    config = LoKrConfig(r=1, alpha=2, target_modules=targets, decompose_both=True)
    assert_same(merge_both(config, kind, tmp_path, torch.bfloat16))


@given(
    rank=st.integers(1, 20),
    factor=st.sampled_from([-1, 2, 3, 4, 8, 24, 100]),
    both_sides=st.booleans(),
    alpha=st.sampled_from([1, 4, -2]),
    form=st.sampled_from([LoKrConfig, LoHaConfig]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rank_and_factor(
    rank: int,
    factor: int,
    both_sides: bool,
    alpha: int,
    form: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    more = {"decompose_factor": factor, "decompose_both": both_sides}
    config = form(
        r=rank,
        alpha=alpha,
        target_modules=["k_proj", "up_proj"],
        rank_pattern={"k_proj": 2},
        alpha_pattern={"layers.1.mlp.up_proj": 7},
        **(more if form is LoKrConfig else {}),
    )
    assert_same(merge_both(config, "llama", tmp_path_factory.mktemp("any")))


@pytest.mark.parametrize(
    ("form", "ends"),
    [
        (LoHaConfig, ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]),
        (LoKrConfig, ["lokr_w1", "lokr_w2_a", "lokr_w2_b"]),
    ],
)
def test_the_adapters_name_left_in_keys(form: Any, ends: list[str], tmp_path: Path) -> None:
    both = merge_both(form(r=2, target_modules=["q_proj"]), "llama", tmp_path)
    assert_name_may_stay(both, tmp_path, *ends)


@pytest.mark.parametrize(
    ("form", "end", "value", "words"),
    [
        (LoHaConfig, "hada_w2_a", None, ["hada_w2_a is missing"]),
        (LoHaConfig, "hada_w1_b", torch.ones(2, 23), ["(2, 23)", "(40, 24)", "(2, 24)"]),
        (LoHaConfig, "hada_w1_a", torch.ones(40, 3), ["(40, 3)", "(40, 2)"]),
        (LoHaConfig, "hada_t1", torch.ones(2, 2, 1, 1), ["hada_t1"]),
        (LoHaConfig, "hada_t3", torch.ones(2, 2), ["hada_t3"]),
        (LoKrConfig, "lokr_w2_b", None, ["lokr_w2_b is missing"]),
        (LoKrConfig, "lokr_w1", torch.ones(5, 7), ["(5, 7)", "(40, 24)"]),
        (LoKrConfig, "lokr_w1_a", torch.ones(5, 2), ["lokr_w1_a", "second form"]),
        (LoKrConfig, "lokr_w2", torch.ones(5, 2), ["lokr_w2", "second form"]),
        (LoKrConfig, "lokr_w1", torch.ones(5), ["(5,)", "(40, 24)"]),
        (LoKrConfig, "lokr_w2_a", torch.ones(8, 3), ["(8, 3)", "rank 2"]),
        (LoKrConfig, "lokr_w2_a", torch.ones(8, 1, 2), ["(8, 1, 2)"]),
        (LoKrConfig, "lokr_t2", torch.ones(2, 2, 3, 3), ["lokr"]),
    ],
)
def test_misfits(
    form: Any, end: str, value: torch.Tensor | None, words: list[str], tmp_path: Path
) -> None:
    saved = save_trained(form(r=2, target_modules=["up_proj"]), "llama", tmp_path)
    rest = {} if value is None else {UP + end: value}
    edit(saved.adapter_path, lambda t: {n: v for n, v in t.items() if n != UP + end} | rest)
    assert_refused(saved, tmp_path, UP, *words)
