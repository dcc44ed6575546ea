"""Write a Llama-3-shaped random checkpoint and LoRA adapters for it, fast and in little memory.

    python benchmarks/inputs.py 3g DIRECTORY

The smaller sizes keep the proportions of Llama-3-8B: fewer layers, and a vocabulary cut alike, so
that the share of the weights that a LoRA touches stays the same.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

RANKS = (16, 64)
SHARDS = 4
_BLOCK = 1 << 23  # elements of the random block that every tensor is cut from


@dataclass(frozen=True)
class Size:
    """A Llama: its width, depth and vocabulary."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shapes of a layer's matrices, as all-linear LoRA targets them."""
        hidden, inner, keys = self.hidden, self.inner, self.hidden // 4
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @property
    def targeted(self) -> int:
        """Elements that an all-linear LoRA changes."""
        return self.layers * sum(rows * columns for rows, columns in self.linears.values())

    @property
    def base_bytes(self) -> int:
        return sum(2 * math.prod(shape) for _, shape in self.tensors())

    def adapter_bytes(self, rank: int) -> int:
        return 4 * rank * self.layers * sum(sum(shape) for shape in self.linears.values())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self.linears.items():
                yield f"model.layers.{layer}.{name}.weight", shape
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{layer}.{name}.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


SIZES = {
    "16m": Size(512, 1792, 2, 2048),
    "64m": Size(1024, 3584, 2, 4096),
    "1g": Size(4096, 14336, 2, 8192),
    "1b": Size(2048, 8192, 16, 128256),
    "3g": Size(4096, 14336, 6, 24064),
    "8b": Size(4096, 14336, 32, 128256),
}


def adapter_name(rank: int) -> str:
    return f"lora-{rank}"


def write_inputs(size: Size, directory: Path) -> None:
    """A base in four shards, all-linear adapters, and one that touches a single small matrix."""
    directory.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).standard_normal(_BLOCK, dtype="f4")
    write_base(size, directory / "base", _bfloat16(values * np.float32(0.02)))
    for rank in RANKS:
        modules = {
            f"model.layers.{layer}.{name}": shape
            for layer in range(size.layers)
            for name, shape in size.linears.items()
        }
        write_adapter(directory / adapter_name(rank), rank, modules, values)
    # A matrix in every shard, so that every shard has two digests; 2 % of the arithmetic.
    smallest = "self_attn.k_proj"
    few = {name: shape for name, shape in modules.items() if name.endswith(smallest)}
    write_adapter(directory / "lora-floor", 1, few, values)


def write_base(size: Size, directory: Path, block: np.ndarray) -> None:
    directory.mkdir()
    tensors = list(size.tensors())
    share = size.base_bytes / SHARDS
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(SHARDS)]
    position = 0
    for name, shape in tensors:
        shards[min(SHARDS - 1, int(position / share))].append((name, shape))
        position += 2 * math.prod(shape)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        weight_map |= {name: file for name, _ in shard}
        _write_safetensors(directory / file, "BF16", shard, block)
    index = {"metadata": {"total_size": size.base_bytes}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", _config(size))
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    words = {f"word{number}": number for number in range(size.vocabulary)}
    _write_json(directory / "tokenizer.json", {"version": "1.0", "model": {"vocab": words}})
    _write_json(directory / "tokenizer_config.json", {"chat_template": "{{ messages }}"})


def write_adapter(
    directory: Path, rank: int, modules: dict[str, tuple[int, int]], values: np.ndarray
) -> None:
    """A LoRA in float32, as PEFT saves it."""
    directory.mkdir()
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for name, (rows, columns) in modules.items():
        tensors.append((f"base_model.model.{name}.lora_A.weight", (rank, columns)))
        tensors.append((f"base_model.model.{name}.lora_B.weight", (rows, rank)))
    block = values * np.float32(0.01)
    _write_safetensors(directory / "adapter_model.safetensors", "F32", tensors, block)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in modules}),
    }
    if len(modules) == 1:
        config |= {"target_modules": list(modules)}
    _write_json(directory / "adapter_config.json", config)


def _config(size: Size) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // 128,
        "num_key_value_heads": size.hidden // 512,
        "head_dim": 128,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view("u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _write_safetensors(
    path: Path, dtype: str, tensors: list[tuple[str, tuple[int, ...]]], block: np.ndarray
) -> None:
    entries: dict[str, object] = {}
    position = 0
    for name, shape in tensors:
        stop = position + math.prod(shape) * block.itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    raw = json.dumps(entries).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for number, (name, shape) in enumerate(tensors):
            if "norm" in name:
                ones = np.ones(shape, "f4")
                file.write(_bfloat16(ones).tobytes())
            else:
                _write_values(file, block, math.prod(shape), 7919 * number)


def _write_values(file: BinaryIO, block: np.ndarray, count: int, start: int) -> None:
    """`count` elements of the block, from another place for each tensor."""
    start %= len(block)
    while count:
        piece = block[start : start + count]
        file.write(piece.data)
        count, start = count - len(piece), 0


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write_inputs(SIZES[sys.argv[1]], Path(sys.argv[2]))
