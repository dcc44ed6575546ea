"""FourierFT, WaveFT and C3A: changes that PEFT computes as transforms of whole matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import C3AConfig, FourierFTConfig, WaveFTConfig
from peft.tuners.waveft.wavelet import Wavelet

import remerge
from remerge.adapters.tuners.places import shuffled
from remerge.adapters.tuners.wavelets import LOW_PASS, synthesis
from tests.adapters.tuners.against_peft import (
    assert_independent,
    assert_same,
    edit,
    merge_both,
    our_merged,
    with_name,
)

LAYERS = ["q_proj", "k_proj", "gate_proj", "down_proj"]
SEEDS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.integers(0, 1000))


@given(st.integers(1, 3000), SEEDS, st.data())
@settings(max_examples=60, deadline=None)
def test_a_shuffle_without_its_end(places: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, places))
    whole = torch.randperm(places, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shuffled(count, places, seed), whole[:count])


@pytest.mark.slow
def test_a_long_shuffle_without_its_end() -> None:
    places = 2**27 + 5
    whole = torch.randperm(places, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shuffled(5000, places, 3), whole[:5000])


@pytest.mark.parametrize("family", LOW_PASS)
def test_wavelets(family: str) -> None:
    theirs = Wavelet(family)
    expected = torch.tensor([theirs.rec_lo, theirs.rec_hi], dtype=torch.float64)
    assert torch.equal(synthesis(family), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fourierft(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    asked = FourierFTConfig(
        n_frequency=60,
        n_frequency_pattern={"down_proj": 31, "c_fc": 2304},
        random_loc_seed=5,
        scaling=30.0,
        target_modules=LAYERS if kind == "llama" else ["c_attn", "c_fc", "c_proj"],
    )
    both = merge_both(asked, kind, tmp_path, dtype)
    assert_same(both)
    assert_independent(both, tmp_path)


WAVES: list[dict[str, Any]] = [
    {"use_idwt": False},
    {"wavelet_family": "db3", "n_frequency_pattern": {"q_proj": 7, "c_attn": 7}},
    {"wavelet_family": "sym8", "proportional_parameters": True},
    {"wavelet_family": "coif2", "random_loc_seed": 4},
    {},
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", WAVES)
def test_waveft(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    layers = LAYERS if kind == "llama" else ["c_attn", "c_fc", "c_proj"]
    asked = WaveFTConfig(n_frequency=90, scaling=2.0, target_modules=layers, **options)
    both = merge_both(asked, kind, tmp_path)
    assert_same(both)
    if options.get("wavelet_family", "db3") == "db3":
        assert_independent(both, tmp_path)


@pytest.mark.parametrize("use_idwt", [True, False])
def test_waveft_in_16_bits(use_idwt: bool, tmp_path: Path) -> None:
    asked = WaveFTConfig(n_frequency=90, target_modules=LAYERS, use_idwt=use_idwt, scaling=2.0)
    assert_same(merge_both(asked, "llama", tmp_path, torch.bfloat16))


def test_a_wavelet_that_peft_cannot_build_is_refused(tmp_path: Path) -> None:
    both = merge_both(WaveFTConfig(n_frequency=9, target_modules=LAYERS), "llama", tmp_path)
    edit(both.adapter_path, wavelet_family="coif5")
    with pytest.raises(remerge.RemergeError, match="coif5"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_c3a(dtype: torch.dtype, size: int, tmp_path: Path) -> None:
    asked = C3AConfig(
        block_size=size,
        block_size_pattern={"down_proj": 8},
        target_modules=LAYERS,
        init_weights="gaussian",
    )
    both = merge_both(asked, "llama", tmp_path, dtype)
    assert_same(both, equal=0.5, rounds_delta=2)
    if size == 4:
        assert_independent(both, tmp_path)


CONFIGS: dict[str, Any] = {
    "fourierft_spectrum": FourierFTConfig(n_frequency=60, target_modules=LAYERS),
    "waveft_spectrum": WaveFTConfig(n_frequency=60, target_modules=LAYERS),
    "c3a_kernel": C3AConfig(block_size=4, target_modules=LAYERS),
}


@pytest.mark.parametrize("part", CONFIGS)
def test_keys_and_misfits(part: str, tmp_path: Path) -> None:
    both = merge_both(CONFIGS[part], "llama", tmp_path)
    edit(both.adapter_path, with_name("default", part))
    again = our_merged(both.base_path, both.adapter_path, tmp_path / "named")
    assert all(torch.equal(value, again[name]) for name, value in both.ours.items())
    key = f"base_model.model.model.layers.1.mlp.down_proj.{part}.default"
    edit(both.adapter_path, lambda held: held | {key: held[key][..., :-1]})
    with pytest.raises(remerge.RemergeError, match=f"down_proj.{part}"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    stray = "base_model.model.model.layers.9.mlp.down_proj." + part
    edit(both.adapter_path, lambda held: {stray: held.pop(key), **held})
    with pytest.raises(remerge.RemergeError, match=r"layers\.9"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_seed_beyond_torchs(tmp_path: Path) -> None:
    both = merge_both(CONFIGS["waveft_spectrum"], "llama", tmp_path)
    edit(both.adapter_path, random_loc_seed=2**70)
    with pytest.raises(remerge.BadInput, match="random_loc_seed"):
        our_merged(both.base_path, both.adapter_path, tmp_path / "bad")
    assert json.loads((both.adapter_path / "adapter_config.json").read_text())
