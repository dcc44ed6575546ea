"""Tiny models with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.pytorch_utils import Conv1D


class Everything(nn.Module):
    """One layer of each kind that LoRA knows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.square = nn.Linear(12, 12)
        self.conv1d_linear = Conv1D(20, 12)
        self.square_conv1d = Conv1D(12, 12)
        self.embedding = nn.Embedding(30, 12)
        self.conv1 = nn.Conv1d(6, 10, 3)
        self.conv2 = nn.Conv2d(6, 10, 3)
        self.conv2_point = nn.Conv2d(6, 10, 1)
        self.conv3 = nn.Conv3d(4, 6, 2)
        self.norm = nn.LayerNorm(12)


class Attention(nn.Module):
    """torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x)[0]


class Experts(nn.Module):
    """Stacks of expert matrices and a router, as transformers 5 holds them."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = transposed
        up, down = (3, 16, 8), (3, 8, 8)
        if transposed:
            up = (3, 8, 16)
        self.gate_up_proj = nn.Parameter(torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down))
        self.gate = nn.Parameter(torch.randn(3, 8))


class Mixture(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.experts = Experts(transposed)


def llama(tied: bool = False, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ).eval()


def phi3() -> Phi3ForCausalLM:
    torch.manual_seed(1)
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def qwen3_moe() -> Qwen3MoeForCausalLM:
    torch.manual_seed(1)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            moe_intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ).eval()


def gpt_oss() -> GptOssForCausalLM:
    torch.manual_seed(1)
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_local_experts=3,
            num_experts_per_tok=2,
        )
    ).eval()
