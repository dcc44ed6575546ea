"""Adapters for a task, on bases that were saved with another head or with none."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from . import models
from .oracle import applied, changes_of, save_base, trained, write_output

IDS = torch.tensor([[1, 5, 9, 33, 2]])
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def check(base_model: Any, task_class: Any, task: str, targets: list[str], tmp: Path) -> Any:
    """Train on the task's class over the saved base, merge, load as the config says, compare."""
    torch.manual_seed(0)
    base = save_base(base_model, tmp / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = task_class.from_pretrained(
            tmp / "base", num_labels=3, ignore_mismatched_sizes=True
        ).eval()
        config = LoraConfig(r=4, target_modules=targets, task_type=task)
        trained(copy.deepcopy(model), config, tmp / "adapter")
        changes = changes_of(base, tmp / "adapter")
        ours = applied(base, changes, seed=0)
        write_output(base, changes, ours, tmp / "out")
        adapted = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp / "adapter")).eval()
        named = getattr(transformers, changes.config.get("architectures", [""])[0], task_class)
        output, report = named.from_pretrained(tmp / "out", output_loading_info=True)
    assert named is task_class
    assert changes.config.get("architectures", base.config["architectures"]) == [named.__name__]
    assert not any(report.values()), report
    assert output.config.num_labels == 3
    torch.testing.assert_close(output.eval()(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)
    return changes


@pytest.mark.parametrize("tied", [False, True])
def test_sequence_classification_on_a_causal_base(tied: bool, tmp_path: Path) -> None:
    base = models.llama(tied, pad_token_id=0)
    changes = check(base, LlamaForSequenceClassification, "SEQ_CLS", ["q_proj"], tmp_path)
    assert changes.dropped == (frozenset() if tied else {"lm_head.weight"})
    assert changes.tensors["score.weight"].reads_base is False


def test_token_classification_on_a_causal_base(tmp_path: Path) -> None:
    base = models.llama(pad_token_id=0)
    check(base, LlamaForTokenClassification, "TOKEN_CLS", ["q_proj"], tmp_path)


def test_another_number_of_labels(tmp_path: Path) -> None:
    base = LlamaForSequenceClassification(models.llama(pad_token_id=0).config)
    changes = check(base, LlamaForSequenceClassification, "SEQ_CLS", ["q_proj"], tmp_path)
    assert len(changes.config["id2label"]) == 3
    assert not changes.dropped


def test_roberta_head_of_two_layers(tmp_path: Path) -> None:
    base = RobertaForMaskedLM(RobertaConfig(**SMALL))
    changes = check(base, RobertaForSequenceClassification, "SEQ_CLS", ["query"], tmp_path)
    assert "lm_head.bias" in changes.dropped


def test_bert_loses_both_heads_of_its_pretraining(tmp_path: Path) -> None:
    base = BertForPreTraining(BertConfig(**SMALL))
    changes = check(base, BertForSequenceClassification, "SEQ_CLS", ["query"], tmp_path)
    assert {name.split(".")[1] for name in changes.dropped} == {"predictions", "seq_relationship"}
