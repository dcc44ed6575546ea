"""OFT, BOFT, HRA and RoAd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import BOFTConfig, HRAConfig, OFTConfig, RoadConfig
from peft.tuners.boft import layer as boft_layer

import remerge
from tests.adapters.tuners.against_peft import (
    Both,
    assert_independent,
    assert_name_may_stay,
    assert_refused,
    assert_same,
    edit,
    merge_both,
    our_merged,
    save_trained,
)

DTYPES = (torch.float32, torch.bfloat16)
Q = "base_model.model.model.layers.0.self_attn.q_proj."
LINEAR = ["q_proj", "k_proj", "down_proj"]
CONV = ["layer.0.convolution", "shortcut.convolution"]


def check(both: Both, out: Path) -> None:
    assert_same(both)
    # Memory and rows have nothing to do with the dtype: once is enough.
    if all(value.dtype != torch.bfloat16 for value in both.ours.values()):
        assert_independent(both, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"oft_block_size": 4},
        {"r": 4, "oft_block_size": 0},
        {"oft_block_size": 4, "use_cayley_neumann": False},
        {"oft_block_size": 8, "block_share": True},
        {"oft_block_size": 4, "coft": True, "eps": 0.3},
        {"oft_block_size": 4, "coft": True, "eps": 0.3, "block_share": True},
        {"r": 5, "oft_block_size": 0, "num_cayley_neumann_terms": 3},
    ],
    ids=str,
)
def test_oft(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=LINEAR, **options)
    check(merge_both(config, "llama", tmp_path, dtype, noise=0.2), tmp_path)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 9])
def test_terms_of_the_series(terms: int, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=LINEAR, oft_block_size=6, num_cayley_neumann_terms=terms)
    both = merge_both(config, "llama", tmp_path, noise=0.2)
    if terms > 1:
        assert_same(both)
    else:
        assert not both.changed


@pytest.mark.parametrize(
    ("kind", "targets"), [("resnet", CONV), ("llama", ["embed_tokens"]), ("whisper", ["fc1"])]
)
def test_oft_on_other_layers(kind: str, targets: list[str], tmp_path: Path) -> None:
    config = OFTConfig(target_modules=targets, oft_block_size=4)
    check(merge_both(config, kind, tmp_path, noise=0.2), tmp_path)


def test_what_oft_tells_the_user(tmp_path: Path) -> None:
    config = OFTConfig(target_modules=CONV, oft_block_size=4)
    saved = save_trained(config, "resnet", tmp_path)
    notes = " ".join(remerge.plan(saved.base_path, saved.adapter_path, progress=False).notes)
    assert "overlapping" in notes
    assert "0.18" not in notes
    edit(saved.adapter_path, peft_version="0.17.1")
    notes = " ".join(remerge.plan(saved.base_path, saved.adapter_path, progress=False).notes)
    assert "0.18" in notes


def test_oft_of_the_old_form(tmp_path: Path) -> None:
    saved = save_trained(OFTConfig(target_modules=["q_proj"], oft_block_size=4), "llama", tmp_path)
    told = saved.adapter_path / "adapter_config.json"
    told.write_text(told.read_text().replace('"oft_block_size": 4,', ""))
    with pytest.raises(remerge.Unsupported, match=r"before PEFT 0\.15"):
        our_merged(saved.base_path, saved.adapter_path, tmp_path / "out")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{"boft_block_size": 4}, {"boft_block_num": 2, "boft_block_size": 0}], ids=str
)
@pytest.mark.parametrize(("kind", "targets"), [("llama", LINEAR), ("resnet", CONV)])
def test_boft(
    kind: str, targets: list[str], options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    config = BOFTConfig(target_modules=targets, **options)
    check(merge_both(config, kind, tmp_path, dtype), tmp_path)


@pytest.mark.parametrize(("size", "factors"), [(4, 2), (2, 3), (6, 2), (12, 2)])
def test_boft_with_butterflies(
    size: int, factors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BlockDiagonal:
        """PEFT's CUDA kernel, which several factors need, in torch."""

        @staticmethod
        def apply(blocks: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.block_diag(*factor) for factor in blocks])

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    targets = ["q_proj"]
    config = BOFTConfig(
        target_modules=targets, boft_block_size=size, boft_n_butterfly_factor=factors
    )
    check(merge_both(config, "llama", tmp_path), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize(("kind", "targets"), [("llama", LINEAR), ("resnet", CONV)])
def test_hra(
    kind: str, targets: list[str], orthogonal: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = HRAConfig(r=5, target_modules=targets, apply_GS=orthogonal)
    check(merge_both(config, kind, tmp_path, dtype), tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize(("kind", "targets"), [("llama", LINEAR), ("whisper", ["fc1", "q_proj"])])
def test_road(
    kind: str, targets: list[str], variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = RoadConfig(target_modules=targets, variant=variant, group_size=4)
    check(merge_both(config, kind, tmp_path, dtype, wide=True), tmp_path)


@given(
    group=st.sampled_from([2, 6, 12]),
    variant=st.sampled_from(["road_1", "road_2", "road_4"]),
    rank=st.integers(1, 24),
    size=st.sampled_from([2, 3, 6, 12, 24]),
    share=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sizes(
    group: int,
    variant: str,
    rank: int,
    size: int,
    share: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for config in (
        RoadConfig(target_modules=["k_proj"], variant=variant, group_size=group),
        HRAConfig(target_modules=["k_proj"], r=rank),
        OFTConfig(target_modules=["k_proj"], oft_block_size=size, block_share=share),
        BOFTConfig(target_modules=["k_proj"], boft_block_size=size),
    ):
        out = tmp_path_factory.mktemp("any")
        assert_same(merge_both(config, "llama", out, seed=seed, noise=0.1))


CONFIGS = {
    "oft": OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "boft": BOFTConfig(target_modules=["q_proj"], boft_block_size=4),
    "hra": HRAConfig(target_modules=["q_proj"], r=3),
    "road": RoadConfig(target_modules=["q_proj"], group_size=4),
}


@pytest.mark.parametrize(
    ("form", "ends"),
    [
        ("oft", ["oft_R"]),
        ("boft", ["boft_R", "boft_s"]),
        ("hra", ["hra_u"]),
        ("road", ["road_theta", "road_alpha"]),
    ],
)
def test_the_adapters_name_left_in_keys(form: str, ends: list[str], tmp_path: Path) -> None:
    assert_name_may_stay(merge_both(CONFIGS[form], "llama", tmp_path), tmp_path, *ends)


@pytest.mark.parametrize(
    ("form", "end", "shape", "words"),
    [
        ("oft", "oft_R.weight", (5, 6), ["(5, 6)", "(24, 24)"]),
        ("oft", "oft_R.weight", (6, 7), ["(6, 7)"]),
        ("oft", "oft_R.weight", (1, 6), ["(1, 6)"]),
        ("oft", "oft_R.weight", (6,), ["(6,)"]),
        ("oft", "oft_r", (6, 4, 4), ["oft_r"]),
        ("boft", "boft_R", (1, 6, 4, 3), ["(1, 6, 4, 3)", "(24, 24)"]),
        ("boft", "boft_R", (3, 6, 4, 4), ["(3, 6, 4, 4)"]),
        ("boft", "boft_R", (1, 5, 4, 4), ["(1, 5, 4, 4)"]),
        ("boft", "boft_s", (1, 24), ["(1, 24)", "(24, 1)"]),
        ("boft", "boft_s", None, ["boft_s is missing"]),
        ("hra", "hra_u", (24, 4), ["(24, 4)", "rank 3"]),
        ("hra", "hra_u", (23, 3), ["(23, 3)", "(24, 24)"]),
        ("road", "road_alpha", (24,), ["(24,)", "(12,)"]),
        ("road", "road_theta", None, ["road_theta is missing"]),
    ],
)
def test_misfits(
    form: str, end: str, shape: tuple[int, ...] | None, words: list[str], tmp_path: Path
) -> None:
    saved = save_trained(CONFIGS[form], "llama", tmp_path)
    rest = {} if shape is None else {Q + end: torch.ones(shape)}
    edit(saved.adapter_path, lambda t: {n: v for n, v in t.items() if n != Q + end} | rest)
    assert_refused(saved, tmp_path, Q, *words)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("road", {"group_size": 5}),
        ("road", {"group_size": 0}),
        ("road", {"group_size": 16}),
        ("road", {"variant": "road_3"}),
        ("oft", {"num_cayley_neumann_terms": 10**9}),
        ("oft", {"block_share": True}),
        ("hra", {"r": 0}),
    ],
)
def test_configurations_that_make_no_sense(
    form: str, options: dict[str, Any], tmp_path: Path
) -> None:
    saved = save_trained(CONFIGS[form], "llama", tmp_path)
    edit(saved.adapter_path, **options)
    assert_refused(saved, tmp_path)


def test_more_orthogonal_planes_than_inputs(tmp_path: Path) -> None:
    saved = save_trained(
        HRAConfig(target_modules=["q_proj"], r=26, apply_GS=True), "llama", tmp_path
    )
    assert_refused(saved, tmp_path, Q, "26 planes", "24 inputs")
