"""PEFT's own variants against the real `add_weighted_adapter`, merged by PEFT.

PEFT computes in float32, so that results agree to a few of its units: 2e-6 of the largest value,
1e-5 after a decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import remerge
from remerge.errors import Unsupported, UsageError
from remerge.merging.methods import peft_svd
from remerge.merging.methods.peft_factors import PEFT_DARE_LINEAR, PEFT_DARE_TIES
from remerge.merging.methods.peft_svd import PEFT_DARE_LINEAR_SVD, PEFT_MAGNITUDE_PRUNE_SVD
from tests.merging.methods.factor_cases import (
    close,
    joint_of,
    low_rank,
    random_factors,
    svd,
    total,
    write_adapter,
    write_base,
)
from tests.merging.methods.peft_cases import Case, agree, gpt2, llama, resnet

DECOMPOSED = 1e-5
COMMON = ["q_proj", "v_proj", "embed_tokens", "down_proj"]
LLAMA = [
    {"r": 4, "lora_alpha": 8, "target_modules": COMMON},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]},
    {"r": 4, "lora_alpha": 4, "target_modules": COMMON},
]
# Conv1D, stored transposed, and an embedding.
GPT2: list[dict[str, Any]] = [
    {**asked, "r": 4, "fan_in_fan_out": True}
    for asked in (
        {"lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "wpe"]},
        {"lora_alpha": 6, "target_modules": ["c_attn", "c_fc"]},
    )
]
MIXED = [
    {"r": 4, "lora_alpha": 8, "target_modules": COMMON, "rank_pattern": {"down_proj": 2}},
    {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]},
    {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": COMMON,
        "rank_pattern": {"0.self_attn.q_proj": 5},
        "alpha_pattern": {"v_proj": 1},
    },
]
CONV = [{"r": r, "lora_alpha": 8, "target_modules": ["convolution"]} for r in (4, 4)]
RSLORA = [{**LLAMA[0], "use_rslora": True}, LLAMA[1]]

# combination_type, what it takes; ours is peft_ and the same but for cat and svd.
ELEMENTWISE: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.3, "majority_sign_method": "frequency"}),
    ("magnitude_prune", {"density": 0.4}),
    ("dare_linear", {"density": 1.0}),
    ("dare_ties", {"density": 1.0}),
]
FULL: list[tuple[str, dict[str, Any]]] = [
    ("ties_svd", {"density": 0.5}),
    ("magnitude_prune_svd", {"density": 0.5, "svd_rank": 3}),
    ("dare_linear_svd", {"density": 1.0}),
    ("dare_ties_svd", {"density": 1.0}),
]
PRECISE: list[tuple[str, dict[str, Any]]] = [("cat", {}), ("svd", {}), ("svd", {"svd_rank": 2})]


def check(
    case: Case, kinds: Sequence[tuple[str, dict[str, Any]]], weights: Sequence[float]
) -> None:
    for kind, asked in kinds:
        ours = kind if kind in ("cat", "svd") else f"peft_{kind}"
        wanted = case.combined(combination_type=kind, weights=list(weights), **asked)
        tolerance = DECOMPOSED if kind.endswith("svd") else 2e-6
        agree(case, wanted, case.ours(ours, weights, **asked), tolerance=tolerance)


def test_linear_layers_and_embeddings(tmp_path: Path) -> None:
    check(llama(tmp_path, LLAMA), [*ELEMENTWISE, *FULL, *PRECISE], [0.7, -0.4, 1.2])


@pytest.mark.parametrize(("make", "configs"), [(gpt2, GPT2), (resnet, CONV)])
def test_transposed_layers_and_convolutions(tmp_path: Path, make: Any, configs: Any) -> None:
    kinds = [ELEMENTWISE[0], ELEMENTWISE[1], FULL[0], PRECISE[2]]
    check(make(tmp_path, configs), kinds, [-0.7, 0.4])


def test_a_tied_tensor_is_two_layers(tmp_path: Path) -> None:
    """PEFT combines the embedding's factors and the head's apart."""
    configs = [
        {"r": 3, "target_modules": targets}
        for targets in (["embed_tokens"], ["lm_head", "q_proj"], ["embed_tokens", "lm_head"])
    ]
    kinds = [*ELEMENTWISE, FULL[0], *PRECISE]
    check(llama(tmp_path, configs, tied=True), kinds, [0.7, -0.4, 1.2])


def test_mixed_ranks(tmp_path: Path) -> None:
    case = llama(tmp_path, MIXED)
    check(case, [*PRECISE, *FULL], [0.7, 0.2, -1.2])
    # Of the largest rank with a weight; weight 0 is no part of it.
    check(case, [("cat", {}), ("svd", {"svd_rank": 3})], [0.7, 0.0, -1.2])
    with pytest.raises(Unsupported, match="has rank 4 in adapter 1 and 2 in adapter 3") as told:
        case.ours("peft_linear", [1.0, 1.0, 1.0])
    assert "--method cat" in str(told.value.hint)


def test_rank_stabilised_first_adapter(tmp_path: Path) -> None:
    """PEFT's numbers, sqrt(r) too large; `svd` and `cat` are not."""
    case = llama(tmp_path, RSLORA)
    check(case, [*ELEMENTWISE, *FULL], [0.7, -0.4])
    base = case.base_tensors()
    name = "model.layers.0.self_attn.q_proj.weight"
    for kind, rank in (("cat", 8), ("svd", 4)):
        wanted = case.combined(combination_type=kind, weights=[0.7, -0.4])[name] - base[name]
        found = case.ours(kind, [0.7, -0.4])[name] - base[name]
        assert torch.allclose(found * math.sqrt(rank), wanted, atol=2e-5)


def test_one_adapter_alone_is_linear(tmp_path: Path) -> None:
    check(llama(tmp_path, LLAMA[:1]), [ELEMENTWISE[0], ELEMENTWISE[1], FULL[0]], [-0.4])


def test_weight_zero_may_not_elect(tmp_path: Path) -> None:
    case = llama(tmp_path, LLAMA)
    check(case, [("linear", {}), ("magnitude_prune", {"density": 0.4})], [0.7, 0.0, 1.2])
    for method in ("peft_ties", "peft_dare_ties_svd"):
        with pytest.raises(UsageError, match="adapter 2 a weight of 0"):
            case.ours(method, [0.7, 0.0, 1.2])


def test_notes_say_what_is_wrong(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    for number in range(2):
        write_adapter(tmp_path / str(number), random_factors(number, 4), 1.0)
    paths: list[str | Path] = [tmp_path / "0", tmp_path / "1"]
    (note,) = [
        n for n in remerge.plan(tmp_path / "base", paths, method="peft_ties").notes if "apart" in n
    ]
    assert note.startswith("peft_ties combines factors A and B apart")
    svd_notes = remerge.plan(tmp_path / "base", paths, method="peft_ties_svd").notes
    assert any("sqrt(rank)" in text for text in svd_notes)


def test_random_masks() -> None:
    """Each factor is masked by itself and rescaled; the masks are the seed's."""
    ones = joint_of([[low_rank(np.ones((300, 1)), np.ones((1, 400)))]] * 2, [1.0, 1.0], (300, 400))
    (step,) = PEFT_DARE_LINEAR.combine(ones, PEFT_DARE_LINEAR.read({"density": (0.25, 0.25)}))
    left, right = (factor.read() for factor in step.factors)
    for values in (left, right):
        # Two adapters, each kept with a chance of 1/4 and then multiplied by 4.
        assert set(values.unique().tolist()) == {0.0, 4.0, 8.0}
        kept = float(values.sum()) / 4 / (2 * values.numel())
        assert abs(kept - 0.25) < 4 * math.sqrt(0.25 * 0.75 / (2 * values.numel()))
    again = PEFT_DARE_LINEAR.read({"density": (0.25, 0.25), "seed": 1})
    (other,) = PEFT_DARE_LINEAR.combine(ones, again)
    assert not other.factors[0].read().equal(left)
    # Where both are kept TIES takes their mean, where one is, that one.
    (elected,) = PEFT_DARE_TIES.combine(ones, PEFT_DARE_TIES.read({"density": (0.25, 0.25)}))
    assert elected.factors[0].read().equal(left.clamp(max=4.0))


def test_random_masks_of_full_deltas() -> None:
    joint = joint_of([[low_rank(np.ones((60, 1)), np.ones((1, 80)))]] * 2, [1.0, 1.0], (60, 80))
    found = total(PEFT_DARE_LINEAR_SVD, joint, density=0.5, svd_rank=60)
    values = np.round(found, 4)
    assert set(np.unique(values)) == {0.0, 2.0, 4.0}
    assert abs(values.mean() / 2 - 1.0) < 4 * math.sqrt(0.5 / 60 / 80)


def test_large_matrices_are_within_one_percent_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    pairs = [(rng.standard_normal((90, 5)), rng.standard_normal((5, 130))) for _ in range(3)]
    joint = joint_of([[low_rank(b, a)] for b, a in pairs], [1.0, 0.5, -1.0], (90, 130))
    pruned = np.zeros((90, 130))
    for (b, a), weight in zip(pairs, [1.0, 0.5, -1.0], strict=True):
        delta = b @ a
        delta[np.abs(delta) < np.sort(np.abs(delta), axis=None)[-int(0.4 * delta.size)]] = 0.0
        pruned += weight * delta
    best = np.linalg.norm(svd(pruned)[1][6:])
    asked = {"density": 0.4, "svd_rank": 6}
    # float32 factors.
    exact = total(PEFT_MAGNITUDE_PRUNE_SVD, joint, **asked)
    left, values, right = svd(pruned)
    close(exact, left[:, :6] * values[:6] @ right[:6], 1e-6)
    monkeypatch.setattr(peft_svd, "_EXACT", 0)
    monkeypatch.setattr("remerge.merging.methods.blocks._ELEMENTS", 130 * 3 * 31)
    found = total(PEFT_MAGNITUDE_PRUNE_SVD, joint, **asked)
    assert best * (1 - 1e-9) <= np.linalg.norm(found - pruned) <= 1.01 * best
    assert np.array_equal(found, total(PEFT_MAGNITUDE_PRUNE_SVD, joint, **asked))
