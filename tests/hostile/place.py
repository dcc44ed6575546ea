"""A tiny valid base and adapter, and the tools to break them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, INNER, VOCABULARY, LAYERS, RANK = 16, 32, 32, 2, 4
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
TARGET = "model.layers.0.self_attn.q_proj.weight"

Shape = tuple[int, ...]
Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where a case happens: inputs, the output that must not appear, what a payload would leave."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def canary(self) -> Path:
        """The file that hostile code in an input would make, if it ever ran."""
        return self.root / "canary"

    @property
    def shard(self) -> Path:
        return self.base / SHARDS[0]

    @property
    def lora(self) -> Path:
        return self.adapter / "adapter_model.safetensors"

    @property
    def lora_config(self) -> Path:
        return self.adapter / "adapter_config.json"


def build(root: Path) -> Place:
    """Write a base of two shards and a LoRA adapter on its q_proj and v_proj."""
    place = Place(root)
    place.base.mkdir()
    place.adapter.mkdir()
    tensors = _base_tensors()
    first = {name: t for name, t in tensors.items() if ".layers.1." not in name}
    second = {name: t for name, t in tensors.items() if name not in first}
    weight_map: dict[str, str] = {}
    for name, part in zip(SHARDS, (first, second), strict=True):
        write_safetensors(place.base / name, part)
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(place.base / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(place.base / "config.json", CONFIG)
    write_json(place.base / "generation_config.json", {"eos_token_id": 2})
    write_safetensors(place.lora, _lora_tensors())
    write_json(place.lora_config, LORA_CONFIG)
    return place


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LORA_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["q_proj", "v_proj"],
}


def _base_tensors() -> dict[str, np.ndarray]:
    square, wide, high = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    layer = {
        **{f"self_attn.{p}_proj.weight": square for p in "qkvo"},
        **{f"mlp.{p}_proj.weight": wide for p in ("gate", "up")},
        "mlp.down_proj.weight": high,
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return _random(shapes, seed=1)


def _lora_tensors() -> dict[str, np.ndarray]:
    shapes: dict[str, Shape] = {}
    for number in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            shapes[lora_key(number, module, "A")] = (RANK, HIDDEN)
            shapes[lora_key(number, module, "B")] = (HIDDEN, RANK)
    return _random(shapes, seed=2)


def lora_key(layer: int, module: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight"


A0, B0 = lora_key(0, "q_proj", "A"), lora_key(0, "q_proj", "B")


def _random(shapes: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: random.normal(0, 0.02, shape).astype("f4") for n, shape in shapes.items()}


# --- writing and editing -------------------------------------------------------------------------

_DTYPES = {"f4": "F32", "f2": "F16", "i1": "I8", "c8": "C64"}


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; the value `...` takes the key away."""
    document = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in document.items() if value is not ...})


def write_safetensors(path: Path, tensors: Tensors) -> None:
    entries: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype.str[1:]],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    write_raw(path, json.dumps(entries).encode(), b"".join(t.tobytes() for t in tensors.values()))


def write_raw(path: Path, header: bytes, data: bytes, *, length: int | None = None) -> None:
    """A file with this header, whatever it says; `length` lies about the header's size."""
    size = struct.pack("<Q", len(header) if length is None else length)
    path.write_bytes(size + header + data)


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header's JSON and the data of a valid file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header's JSON in place; the data stay."""
    header, data = read_raw(path)
    edit(header)
    write_raw(path, json.dumps(header).encode(), data)


def edit_text(path: Path, old: str, new: str | bytes) -> None:
    """Replace text in the header once: for what `json` cannot write."""
    header, data = read_raw(path)
    replacement = new if isinstance(new, bytes) else new.encode()
    raw = json.dumps(header).encode()
    assert old.encode() in raw
    write_raw(path, raw.replace(old.encode(), replacement, 1), data)


def edit_tensors(path: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove tensors, leaving a well-formed file."""
    header, data = read_raw(path)
    tensors: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start:stop], "<f4").reshape(entry["shape"])
    tensors |= {name: t for name, t in changes.items() if t is not None}
    write_safetensors(path, {n: t for n, t in tensors.items() if changes.get(n, t) is not None})


def zeros(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.zeros(shape, dtype)


# --- the registry --------------------------------------------------------------------------------

Corrupt = Callable[[Place], object]
COMMAND = ("merge", "{base}", "{adapter}", "-o", "{out}")


@dataclass(frozen=True)
class Case:
    """One malformed input: how to make it, what must come out of the command."""

    name: str
    corrupt: Corrupt
    says: str
    exits: tuple[int, ...]
    command: tuple[str, ...]
    check: Corrupt | None

    def arguments(self, place: Place) -> list[str]:
        places = {"base": place.base, "adapter": place.adapter, "out": place.out}
        return [argument.format(root=place.root, **places) for argument in self.command]


CASES: list[Case] = []


def case(
    says: str,
    *command: str,
    exits: int | tuple[int, ...] = 3,
    check: Corrupt | None = None,
) -> Callable[[Corrupt], Corrupt]:
    """Register a builder; its name is the case's. Exit 0 means: must be taken, and do no harm."""
    codes = exits if isinstance(exits, tuple) else (exits,)

    def register(corrupt: Corrupt) -> Corrupt:
        CASES.append(Case(corrupt.__name__, corrupt, says, codes, command or COMMAND, check))
        return corrupt

    return register
