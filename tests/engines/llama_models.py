"""Small random models of the kinds that llama.cpp converts, with the examples' tokenizer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOCABULARY = 2048
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 4}


def _configs() -> dict[str, Any]:
    import transformers as t

    return {
        "llama": t.LlamaConfig(**_SIZES, tie_word_embeddings=False),
        "llama-shared-heads": t.LlamaConfig(**{**_SIZES, "num_key_value_heads": 1}),
        "qwen2-tied": t.Qwen2Config(**_SIZES, tie_word_embeddings=True),
        "qwen3-tied": t.Qwen3Config(**_SIZES, head_dim=64, tie_word_embeddings=True),
        "gemma": t.GemmaConfig(**_SIZES, head_dim=64, bos_token_id=1, eos_token_id=2),
        "phi3-fused": t.Phi3Config(**_SIZES, pad_token_id=0),
        "mixtral": t.MixtralConfig(**{**_SIZES, **_EXPERTS}),
        # Rows that are no whole number of 256-blocks, and then of no blocks at all.
        "odd": t.LlamaConfig(**{**_SIZES, "hidden_size": 192, "intermediate_size": 328}),
    }


NAMES = (
    "llama",
    "llama-shared-heads",
    "qwen2-tied",
    "qwen3-tied",
    "gemma",
    "phi3-fused",
    "mixtral",
    "odd",
)


# The converter reads these models' tokenizer.model.
_MARKS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
_SENTENCEPIECE_CONFIG = {
    "gemma": {"tokenizer_class": "GemmaTokenizer", **_MARKS},
    "phi3-fused": {"tokenizer_class": "LlamaTokenizer", **_MARKS},
}


def train_sentencepiece(python: Path, target: Path) -> None:
    """A small SentencePiece vocabulary, by an interpreter that has the library."""
    program = (
        "import sys, sentencepiece as s\n"
        "s.SentencePieceTrainer.train(input=sys.argv[1], model_prefix=sys.argv[2],\n"
        "    vocab_size=800, model_type='bpe', byte_fallback=True, hard_vocab_limit=False)\n"
    )
    text = EXAMPLES.parent / "docs" / "several.md"
    prefix = target.with_suffix("")
    words = [python, "-c", program, text, prefix]
    subprocess.run(words, check=True, capture_output=True)
    prefix.with_suffix(".vocab").unlink()


def write(name: str, place: Path, python: Path | None) -> tuple[Path, Path]:
    """The base (float32, in ``place/base``) and a LoRA on its linear layers; ``python`` has
    sentencepiece, and without one every model gets the examples' tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(len(name))
    config = _configs()[name]
    model = AutoModelForCausalLM.from_config(config)
    base = place / "base"
    model.save_pretrained(base)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(EXAMPLES / "base" / file, base / file)
    if name in _SENTENCEPIECE_CONFIG and python is not None:
        train_sentencepiece(python, base / "tokenizer.model")
        (base / "tokenizer.json").unlink()
        (base / "special_tokens_map.json").unlink()
        (base / "tokenizer_config.json").write_text(json.dumps(_SENTENCEPIECE_CONFIG[name]))
    attention = ["qkv_proj", "o_proj"] if name == "phi3-fused" else ["q_proj", "v_proj", "o_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=attention))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(place / "adapter")
    return base, place / "adapter"
