"""Embeddings: tied or not, trained by LoRA, by rows, as copies, with more tokens.

Where PEFT's merge differs from what the adapter computes, its forward pass is the oracle.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from remerge.adapters.deltas import Changes
from remerge.adapters.families import DoesNotFit
from remerge.adapters.names import DirectNames

from . import models
from .oracle import (
    Base,
    applied,
    assert_same,
    changes_of,
    check_model,
    merged_model,
    save_base,
    trained,
    write_output,
)

IDS = torch.tensor([[1, 5, 9, 33, 2]])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def forward_matches(model: Any, config: LoraConfig, tmp: Path, seen_tied: bool) -> Any:
    """The output of remerge computes what the adapter on its base computes."""
    base = save_base(model, tmp / "base")
    trained(copy.deepcopy(model), config, tmp / "adapter")
    changes = changes_of(base, tmp / "adapter")
    ours = applied(base, changes, seed=0)
    output, adapted = loaded(base, changes, ours, model, tmp)
    assert output.config.tie_word_embeddings is seen_tied
    torch.testing.assert_close(output(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)
    return changes


def loaded(
    base: Base,
    changes: Changes,
    ours: Any,
    model: Any,
    tmp: Path,
    model_class: Any = AutoModelForCausalLM,
) -> tuple[Any, Any]:
    """The output as transformers loads it, and the adapter on its base as PEFT does."""
    write_output(base, changes, ours, tmp / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp / "adapter")).eval()
        output, report = model_class.from_pretrained(
            tmp / "out", output_loading_info=True, dtype=torch.float32
        )
    assert not any(report.values()), report
    return output, adapted


@pytest.mark.parametrize("dora", [False, True])
def test_untied_embedding_and_head(dora: bool, tmp_path: Path) -> None:
    """PEFT also saves the base layers of both, which overwrite the base before the merge."""
    config = LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=dora)
    check_model(models.llama(), config, tmp_path)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_lora_changes_both_roles_and_says_so(
    targets: list[str], dora: bool, tmp_path: Path
) -> None:
    """One tensor cannot follow two forward passes: it is PEFT's, and the user is told."""
    config = LoraConfig(r=4, target_modules=[*targets, "q_proj"], use_dora=dora)
    _, changes, ours = check_model(models.llama(tied=True), config, tmp_path)
    assert "lm_head.weight" not in ours
    assert any("are tied" in note for note in changes.notes)


def test_lora_on_one_role_and_a_copy_of_the_other(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["lm_head"], modules_to_save=["embed_tokens"])
    forward_matches(models.llama(tied=True), config, tmp_path, seen_tied=False)


def test_ensured_tying_adds_the_change_once(tmp_path: Path) -> None:
    """PEFT's merge adds it twice."""
    config = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    changes = forward_matches(models.llama(tied=True), config, tmp_path, seen_tied=True)
    assert not changes.notes


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "tokens",
    [[3, 0, 33], {"embed_tokens": [5, 7]}, {"embed_tokens": [5, 7], "lm_head": [5, 9, 1]}],
    ids=str,
)
def test_trained_tokens(tokens: Any, tied: bool, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=tokens)
    both = isinstance(tokens, dict) and len(tokens) == 2
    forward_matches(models.llama(tied), config, tmp_path, seen_tied=tied and not both)


def test_trained_tokens_of_a_tied_head_alone(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5, 9, 1]}
    )
    forward_matches(models.llama(True), config, tmp_path, seen_tied=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_embeddings_trained_as_copies(saved: list[str], tied: bool, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=saved)
    _, changes, ours = check_model(models.llama(tied), config, tmp_path)
    assert "lm_head.weight" in ours
    assert (changes.config.get("tie_word_embeddings") is False) == tied
    again = tmp_path / "again"
    again.mkdir()
    forward_matches(models.llama(tied), config, again, seen_tied=False)


def test_copies_with_ensured_tying_stay_tied(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    forward_matches(models.llama(tied=True), config, tmp_path, seen_tied=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [41, 42]},
    ],
    ids=str,
)
def test_more_tokens(options: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = models.llama(tied)
    base = save_base(model, tmp_path / "base")
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(43, mean_resizing=False)
    adapted = trained(copy.deepcopy(grown), LoraConfig(r=4, **options), tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    changes = changes_of(base, tmp_path / "adapter")
    assert changes.config["vocab_size"] == 43
    ours = applied(base, changes, seed=0)
    theirs, _ = merged_model(grown, tmp_path / "adapter", tmp_path / "peft")
    assert_same(ours, theirs)


def test_more_tokens_without_the_embeddings_is_refused(tmp_path: Path) -> None:
    model = models.llama()
    base = save_base(model, tmp_path / "base")
    model.resize_token_embeddings(43, mean_resizing=False)
    peft = trained(model, LoraConfig(r=4, target_modules=["lm_head"]), tmp_path / "adapter")
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(DoesNotFit, match="43") as caught:
        changes_of(base, tmp_path / "adapter", DirectNames(base.tensors))
    assert "vocabular" in str(caught.value)


def test_more_tokens_in_the_embedding_alone_is_refused(tmp_path: Path) -> None:
    """PEFT saves only the targeted embedding: the head of the new size is lost."""
    model = models.llama()
    base = save_base(model, tmp_path / "base")
    model.resize_token_embeddings(43, mean_resizing=False)
    trained(model, LoraConfig(r=4, target_modules=["embed_tokens"]), tmp_path / "adapter")
    with pytest.raises(DoesNotFit, match=r"lm_head\.weight: has 40 tokens"):
        changes_of(base, tmp_path / "adapter")


@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
def test_more_tokens_in_one_tied_role_is_refused(saved: str, tmp_path: Path) -> None:
    model = models.llama(tied=True)
    base = save_base(model, tmp_path / "base")
    model.resize_token_embeddings(43, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[saved])
    trained(model, config, tmp_path / "adapter")
    with pytest.raises(DoesNotFit, match=r"tokens, its tied twin \S+ 4"):
        changes_of(base, tmp_path / "adapter")


@pytest.mark.parametrize("tied", [False, True])
def test_encoder_decoder_head_trained_as_a_copy(tied: bool, tmp_path: Path) -> None:
    """Four roles share one tensor; the head leaves them, and config.json stays as it is."""
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["q"], modules_to_save=["lm_head"])
    model = T5ForConditionalGeneration(config).eval()
    base, changes, ours = check_model(model, lora, tmp_path)
    assert "lm_head.weight" in ours
    # T5 reads from tie_word_embeddings whether it scales the decoder's output.
    assert not changes.config
    output, adapted = loaded(base, changes, ours, model, tmp_path, T5ForConditionalGeneration)
    ids = {"input_ids": IDS, "decoder_input_ids": IDS}
    torch.testing.assert_close(output(**ids).logits, adapted(**ids).logits, rtol=1e-4, atol=1e-4)


def test_encoder_decoder_embedding_keeps_its_roles_together(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    lora = LoraConfig(r=4, target_modules=["q", "shared"])
    _, changes, _ = check_model(T5ForConditionalGeneration(config), lora, tmp_path)
    assert any("all of them" in note for note in changes.notes)
