"""Small models quantised by transformers and bitsandbytes themselves, and merged by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_plain(path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A Llama of odd sizes: rows of 72 and 120 values straddle blocks of 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=72,
        intermediate_size=120,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=24,
        vocab_size=110,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)


def quantise(plain: Path, path: Path, **options: Any) -> None:
    """The same model as bitsandbytes stores it."""
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**options), dtype="auto"
    )
    model.save_pretrained(path)


def dequantised(quantised: Path, plain: Path, path: Path) -> None:
    """What the library makes of a quantised checkpoint, as one like ``plain``."""
    values = AutoModelForCausalLM.from_pretrained(quantised, dtype="auto").dequantize().state_dict()
    model = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
    model.load_state_dict(values)
    model.save_pretrained(path)


def write_adapter(base: Path, path: Path, scale: float = 0.02) -> None:
    """A LoRA of every linear layer of a plain base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(path)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def delta(adapter: Path, name: str) -> torch.Tensor:
    """The float64 delta of a weight."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    a, b = (tensors[f"{key}.lora_{part}.weight"].to(torch.float64) for part in "AB")
    return 2.0 * (b @ a)


def read(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def ulps(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """The largest distance between two 16-bit tensors in units in the last place."""

    def ordered(values: torch.Tensor) -> torch.Tensor:
        bits = values.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(ours) - ordered(theirs)).abs().max())
