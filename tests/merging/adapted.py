"""Tiny Llamas and PEFT's own adapters of them, and the merges that PEFT makes of these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

VOCABULARY, WIDTH = 97, 36
Tensors = dict[str, torch.Tensor]


def write_base(
    path: Path, dtype: torch.dtype = torch.float64, *, tied: bool = False, shard: str = "10GB"
) -> Path:
    """A Llama of odd sizes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=53,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
        initializer_range=0.05,
        dtype=dtype,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(path, max_shard_size=shard)
    return path


def write_adapter(
    base: Path, path: Path, config: PeftConfig, seed: int, *, size: float = 0.1, rows: int = 0
) -> Path:
    """An adapter with random values; ``rows`` are added to the vocabulary before."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        torch.manual_seed(seed)
        model.resize_token_embeddings(VOCABULARY + rows)
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter += torch.randn(parameter.shape, generator=generator) * size
    adapted.save_pretrained(path, save_embedding_layers=bool(rows) or "auto")
    return path


def merged_by_peft(
    base: Path, adapters: Sequence[Path], dtype: torch.dtype, **options: Any
) -> Tensors:
    """The adapters merged one after the other into a base of this dtype."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter)
        # The factors are kept in float32; in float64 they are to be multiplied in that.
        model = (model.double() if dtype == torch.float64 else model).merge_and_unload(**options)
    return dict(model.state_dict())


def state(base: Path, dtype: torch.dtype = torch.float64) -> Tensors:
    """The base's own values."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def read(merged: Any) -> Tensors:
    """Every tensor of `remerge.open_merged`."""
    return {name: merged[name][:] for name in merged}
