"""Adapters of torchtune under its own names: adapter_model.pt, or adapter_0.pt of an epoch.

Names and factors are PEFT's but for the modules' names (torchtune/models/convert_weights.py) and
the rows of the query and key projections: torchtune rotates neighbouring pairs where Hugging Face
rotates halves of a head, and loads a base with its rows in that order. Which models it does so
for, and how wide a head is, only the base's config.json says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from remerge.adapters.converters.numbers import finite, positive_int
from remerge.adapters.converters.views import View, as_stored, present, renamed
from remerge.adapters.facts import BaseFacts
from remerge.adapters.keys import PREFIX
from remerge.adapters.opened import Adapter
from remerge.adapters.peft_files import PICKLED, WEIGHTS
from remerge.adapters.tensor_files import TensorFile, open_pickled, open_safetensors
from remerge.errors import BadInput, Unsupported
from remerge.sources.documents import read_json_object
from remerge.sources.links import check_inside

NAME = "torchtune"
CONFIG = "adapter_config.json"

_FILE = "adapter_model.pt"
_EPOCH = re.compile(r"adapter_\d+\.(pt|safetensors)")
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a\.weight|lora_b\.weight|magnitude)")
_LAYER = re.compile(r"layers\.(?P<layer>\d+)\.(?P<part>.+)")
_MODULES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_PARTS = {
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
# Model types that torchtune rotates in pairs, and those that it builds as Hugging Face does
# (models/qwen2/_positional_embeddings.py).
_PAIRED = frozenset({"gemma", "gemma2", "llama", "mistral"})
_HALVED = frozenset({"qwen2"})


def recognises(path: Path) -> bool:
    """Whether torchtune's own file is here; it writes PEFT's beside it, which for some models is
    wrong (see `open_`)."""
    if not (path / CONFIG).exists():
        return False
    files = _files(path)
    return len(files) == 1 or (
        bool(files) and not any(os.path.lexists(path / name) for name in (WEIGHTS, PICKLED))
    )


def open_(path: Path) -> Adapter:
    """The adapter under torchtune's names; `Adapter.for_base` tells it in PEFT's terms.

    torchtune's own conversion to PEFT, adapter_model.safetensors beside this file, also turns the
    rows for Qwen2, whose rows are in Hugging Face's order already, and leaves the magnitudes of
    DoRA unturned: this file is what was trained.

    Raises `BadInput` for a damaged file, and for those of several epochs.
    """
    files = _files(path)
    if len(files) > 1:
        raise BadInput(
            f"{path} holds the adapters of {len(files)} epochs: {', '.join(files[:8])}.",
            hint=f"Put one of them into a directory with {CONFIG}.",
        )
    name = files[0]
    for inside in (CONFIG, name):
        check_inside(path / inside, path)
    stated = read_json_object(path / CONFIG)
    file = open_pickled(path / name) if name.endswith(".pt") else open_safetensors(path / name)
    modules = {key: _module(path / name, key) for key in file.tensors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": positive_int(stated, "r", path / CONFIG),
        "lora_alpha": finite(stated, "lora_alpha", path / CONFIG),
        "use_dora": any(part == "magnitude" for _, part in modules.values()),
        "base_model_name_or_path": stated.get("base_model_name_or_path"),
    }
    convert = partial(_converted, path, (CONFIG, name), file, config, modules)
    return as_stored(path, NAME, (CONFIG, name), file, config, convert)


def _files(path: Path) -> list[str]:
    if os.path.lexists(path / _FILE):
        return [_FILE]
    return sorted(entry.name for entry in path.iterdir() if _EPOCH.fullmatch(entry.name))


def _module(file: Path, key: str) -> tuple[str, str]:
    """Hugging Face's name of the module that a tensor belongs to, and torchtune's of the part."""
    found = _KEY.fullmatch(key)
    if found is not None:
        if found["module"] == "output":
            return "lm_head", found["part"]
        layer = _LAYER.fullmatch(found["module"])
        if layer is not None and layer["part"] in _MODULES:
            return f"model.layers.{layer['layer']}.{_MODULES[layer['part']]}", found["part"]
    raise Unsupported(
        f"{file}: {key} is no tensor of the models that torchtune names alike.",
        why="Only LoRA and DoRA on the layers of Llama, Mistral, Gemma and Qwen2 are known.",
        hint="Merge it with torchtune, which saves merged weights beside the adapter.",
    )


def _converted(
    path: Path,
    files: tuple[str, ...],
    file: TensorFile,
    config: Mapping[str, Any],
    modules: Mapping[str, tuple[str, str]],
    base: BaseFacts,
) -> Adapter:
    model = base.config.get("model_type")
    if model not in _PAIRED | _HALVED:
        raise Unsupported(
            f"{path} was trained by torchtune, and the base's model type is {str(model)[:40]!r}.",
            why="How torchtune orders the rows of its projections is known for "
            + ", ".join(sorted(_PAIRED | _HALVED))
            + ".",
            hint="Merge it with torchtune, which saves merged weights beside the adapter.",
        )
    views: dict[str, View] = {}
    for key, (module, part) in modules.items():
        shape = file.tensors[key].shape
        heads = _heads(base.config, module) if model in _PAIRED and part != "lora_a.weight" else 0
        view = _halved(path, key, shape, heads, base.config) if heads else renamed(key, shape)
        views[f"{PREFIX}{module}.{_PARTS[part]}"] = view
    return present(path, NAME, files, file, config, views)


def _heads(config: Mapping[str, Any], module: str) -> int:
    """How many heads the rows of a module's weight are for; 0 where they are not rotated."""
    field = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(
        module.rpartition(".")[2]
    )
    if field is None:
        return 0
    if config.get(field) is None:
        field = "num_attention_heads"
    return positive_int(config, field, Path("config.json"))


def _halved(
    path: Path, key: str, shape: tuple[int, ...], heads: int, config: Mapping[str, Any]
) -> View:
    """Rows in Hugging Face's order (convert_weights.py, _permute_lora_matrix); any columns."""
    file = Path("config.json")
    if config.get("head_dim") is None:
        width = positive_int(config, "hidden_size", file) // positive_int(
            config, "num_attention_heads", file
        )
    else:
        width = positive_int(config, "head_dim", file)
    if not shape or shape[0] != heads * width or width % 2:
        raise BadInput(
            f"{path}: {key} has shape {shape}, where the base has {heads} heads of {width} rows.",
            why="The adapter was trained on another base.",
        )

    def arrange(part: torch.Tensor) -> torch.Tensor:
        pairs = part.reshape(heads, width // 2, 2, -1)
        return pairs.transpose(1, 2).reshape(shape)

    return View(key, shape, shape, arrange=arrange)
