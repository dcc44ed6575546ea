"""IA3, LayerNorm tuning and trainable tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, TrainableTokensConfig

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
PREFIX = "base_model.model."
Q = PREFIX + "model.layers.0.self_attn.q_proj.ia3_l"
NORM = PREFIX + "model.norm.ln_tuning_layers.weight"
ROWS = PREFIX + "model.embed_tokens.trainable_tokens_delta"
TOKENS = TrainableTokensConfig(token_indices=[7, 3, 49])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "targets", "forward"),
    [
        ("llama", ["q_proj", "down_proj"], ["down_proj"]),
        ("llama", ["q_proj", "down_proj"], r".*\.layers\.\d\.self_attn\.q_proj"),
        ("gpt2", ["c_attn", "c_fc", "mlp.c_proj"], ["mlp.c_proj"]),
        ("resnet", ["convolution"], []),
        ("resnet", ["layer.0.convolution", "layer.1.convolution"], ["layer.0.convolution"]),
        ("whisper", ["fc1", "fc2", "q_proj"], ["fc2"]),
        ("regnet", ["convolution"], []),
        ("regnet", ["convolution"], ["convolution"]),
    ],
)
def test_ia3(
    kind: str, targets: list[str], forward: list[str] | str, dtype: torch.dtype, tmp_path: Path
) -> None:
    named = f"(.*({'|'.join(targets)}))" if isinstance(forward, str) else targets
    config = IA3Config(target_modules=named, feedforward_modules=forward)
    both = merge_both(config, kind, tmp_path, dtype)
    assert_same(both)
    if dtype == torch.float32:
        assert_independent(both, tmp_path)


def test_ia3_of_a_square_layer_without_feedforward_modules(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=["q_proj"])
    both = merge_both(config, "llama", tmp_path)
    edit(both.adapter_path, feedforward_modules=None)
    assert_name_may_stay(both, tmp_path, "ia3_l")


def test_ia3_that_could_scale_either_side(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["layer.0.convolution"], feedforward_modules=[])
    saved = save_trained(config, "resnet", tmp_path)
    edit(saved.adapter_path, feedforward_modules=None)
    assert_refused(saved, tmp_path, "ia3_l", "feedforward_modules")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["input_layernorm", "norm"]),
        ("gpt2", ["ln_1", "ln_f", "c_fc"]),
        ("resnet", ["normalization"]),
    ],
)
def test_ln_tuning(kind: str, targets: list[str], dtype: torch.dtype, tmp_path: Path) -> None:
    both = merge_both(LNTuningConfig(target_modules=targets), kind, tmp_path, dtype)
    assert_same(both, equal=1, units=0)
    assert_name_may_stay(both, tmp_path, "ln_tuning_layers")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "tied llama"])
def test_trainable_tokens(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    both = merge_both(TOKENS, kind, tmp_path, dtype)
    assert_same(both)
    if dtype == torch.float32:
        assert_independent(both, tmp_path)
    (name,) = both.changed
    rows = (both.ours[name] != both.base[name]).any(1).nonzero().flatten().tolist()
    assert rows == [3, 7, 49]


def test_trainable_tokens_of_a_head(tmp_path: Path) -> None:
    config = TrainableTokensConfig(token_indices=[1, 2], target_modules=["lm_head"])
    both = merge_both(config, "llama", tmp_path)
    assert_same(both)
    assert_name_may_stay(both, tmp_path, "trainable_tokens_delta")


@pytest.mark.parametrize(
    ("config", "name", "value", "words"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), Q, (1, 24), ["(24, 1)"]),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), Q, (23, 1), ["(24, 24)"]),
        (LNTuningConfig(target_modules=["norm"]), NORM, (23,), ["(23,)", "(24,)"]),
        (LNTuningConfig(target_modules=["norm"]), NORM[:-6] + "scale", (24,), ["no parameter"]),
        (TOKENS, ROWS, (3, 23), ["(3, 23)", "(50, 24)"]),
        (TOKENS, ROWS, (2, 24), ["(2, 24)", "3 rows"]),
        (TOKENS, ROWS.replace("embed_tokens", "embed"), (3, 24), ["no parameter"]),
    ],
)
def test_misfits(
    config: object, name: str, value: tuple[int, ...], words: list[str], tmp_path: Path
) -> None:
    saved = save_trained(config, "llama", tmp_path)
    edit(saved.adapter_path, lambda tensors: tensors | {name: torch.ones(value)})
    assert_refused(saved, tmp_path, name, *words)


@pytest.mark.parametrize("indices", [[], [7, 7, 3], [7, 3, 50], [-1, 3, 7], None, "many"])
def test_rows_that_make_no_sense(indices: object, tmp_path: Path) -> None:
    saved = save_trained(TOKENS, "llama", tmp_path)
    edit(saved.adapter_path, token_indices=indices)
    assert_refused(saved, tmp_path)
