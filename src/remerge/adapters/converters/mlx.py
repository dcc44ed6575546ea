"""Adapters of mlx-lm: adapters.safetensors beside an adapter_config.json of its own.

The change is ``scale * (lora_a @ lora_b)^T`` with ``lora_a`` (in, r) and ``lora_b`` (r, out), and
``scale`` as configured, not divided by anything (mlx_lm/tuner/lora.py, LoRALinear.fuse). PEFT's
factors are the transposes and its alpha is ``scale * r``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from remerge.adapters.converters.numbers import finite, positive_int
from remerge.adapters.converters.views import View, as_stored, present, renamed, transposed
from remerge.adapters.facts import BaseFacts
from remerge.adapters.keys import PREFIX
from remerge.adapters.opened import Adapter
from remerge.adapters.tensor_files import TensorFile, open_safetensors
from remerge.errors import BadInput, Unsupported
from remerge.sources.documents import as_object, read_json_object
from remerge.sources.links import check_inside

NAME = "mlx-lm"
CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
# Layers that are looked up by token: mlx-lm adapts them with (vocabulary, r) and (r, width).
_EMBEDDING = re.compile(r"(.*\.)?(wte|\w*embed\w*)")
# mlx-lm stacks the experts of a layer; checkpoints name them one by one, in one of these ways.
_EXPERTS = re.compile(r"(?P<layer>.+)\.switch_mlp\.(?P<part>\w+)")
_EXPERT_NAMES: Mapping[str, tuple[str, ...]] = {
    "gate_proj": ("gate_proj", "w1"),
    "up_proj": ("up_proj", "w3"),
    "down_proj": ("down_proj", "w2"),
    "fc1": ("up_proj",),
    "fc2": ("down_proj",),
}


@dataclass(frozen=True)
class _Layer:
    """Names of the tensors of one adapted layer in the file, and their shapes."""

    module: str
    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    m: str | None

    @property
    def stacked(self) -> bool:
        return len(self.b_shape) == 3


def recognises(path: Path) -> bool:
    """Whether mlx-lm would load this directory."""
    return (path / CONFIG).exists() and os.path.lexists(path / WEIGHTS)


def open_(path: Path) -> Adapter:
    """Raises `BadInput` for a damaged file or factors that do not belong together, `Unsupported`
    for a fully trained model and for what PEFT has no word for."""
    for name in (CONFIG, WEIGHTS):
        check_inside(path / name, path)
    stated = read_json_object(path / CONFIG)
    kind = stated.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise Unsupported(
            f"{path} was trained by mlx-lm with fine_tune_type {str(kind)[:40]!r}.",
            why="Its file holds whole weights of mlx-lm's model, not a change of the base.",
            hint="Fuse it with mlx_lm.fuse.",
        )
    dora = kind == "dora" or stated.get("use_dora") is True
    parameters = as_object(stated.get("lora_parameters")) or {}
    rank = positive_int(parameters, "rank", path / CONFIG)
    scale = finite(parameters, "scale", path / CONFIG)
    file = open_safetensors(path / WEIGHTS)
    layers = _layers(path, file, rank, dora)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": scale * rank,
        "use_dora": dora,
        "base_model_name_or_path": stated.get("model"),
    }
    notes = _notes(parameters, scale)
    convert = partial(_converted, path, file, config, layers, notes)
    if any(layer.stacked for layer in layers):
        return as_stored(path, NAME, (CONFIG, WEIGHTS), file, config, convert)
    return convert(None)


def _notes(parameters: Mapping[str, Any], scale: float) -> tuple[str, ...]:
    if "alpha" not in parameters:
        return ()
    return (
        f"The adapter's lora_parameters state alpha {str(parameters['alpha'])[:20]}, which mlx-lm "
        f"does not use: its change is multiplied by scale, {scale:g}.",
    )


def _layers(path: Path, file: TensorFile, rank: int, dora: bool) -> list[_Layer]:
    found: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        key = _KEY.fullmatch(name)
        if key is None:
            raise BadInput(
                f"{path / WEIGHTS}: {name} is no tensor of a LoRA adapter.",
                why="mlx-lm names them lora_a, lora_b and m.",
            )
        found.setdefault(key["module"], {})[key["part"]] = name
    if not found:
        raise BadInput(f"{path / WEIGHTS} holds no tensor.", why="It was saved before training.")
    layers = [_layer(path, file, module, parts, dora) for module, parts in found.items()]
    for layer in layers:
        _check_shapes(path, layer, rank, file)
    return layers


def _layer(
    path: Path, file: TensorFile, module: str, parts: Mapping[str, str], dora: bool
) -> _Layer:
    wanted = {"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}
    if set(parts) != wanted:
        raise BadInput(
            f"{path / WEIGHTS}: {module} has {', '.join(sorted(parts))}, where "
            f"{', '.join(sorted(wanted))} are needed.",
            why="The file is not whole, or fine_tune_type is not what it was trained with.",
        )
    a, b = parts["lora_a"], parts["lora_b"]
    return _Layer(module, a, b, file.tensors[a].shape, file.tensors[b].shape, parts.get("m"))


def _check_shapes(path: Path, layer: _Layer, rank: int, file: TensorFile) -> None:
    a, b = layer.a_shape, layer.b_shape
    if layer.stacked:
        # Written as (E, r, in), by older versions as (E * r, in): the same order of elements.
        fits = b[2] == rank and (a[:2] == (b[0], rank) if len(a) == 3 else a[:1] == (b[0] * rank,))
        fits = fits and len(a) in (2, 3)
    else:
        fits = len(a) == len(b) == 2 and a[1] == b[0] == rank
    if not fits or 0 in (*a, *b):
        raise BadInput(
            f"{path / WEIGHTS}: {layer.a} has shape {a} and {layer.b} {b}, which are no factors "
            f"of rank {rank}.",
            why="mlx-lm stores (in, rank) and (rank, out), for stacked experts (experts, rank, in) "
            "and (experts, out, rank).",
        )
    if layer.m is not None and file.tensors[layer.m].shape != b[1:]:
        raise BadInput(
            f"{path / WEIGHTS}: {layer.m} has shape {file.tensors[layer.m].shape}, where "
            f"{layer.b} asks for {b[1:]}."
        )


def _converted(
    path: Path,
    file: TensorFile,
    config: Mapping[str, Any],
    layers: list[_Layer],
    notes: tuple[str, ...],
    base: BaseFacts | None,
) -> Adapter:
    views: dict[str, View] = {}
    for layer in layers:
        if layer.stacked:
            assert base is not None
            views |= _expert_views(path, layer, base)
        else:
            views |= _matrix_views(path, layer)
    return present(path, NAME, (CONFIG, WEIGHTS), file, config, views, notes)


def _matrix_views(path: Path, layer: _Layer) -> dict[str, View]:
    module = PREFIX + layer.module
    a, b = transposed(layer.a, layer.a_shape), transposed(layer.b, layer.b_shape)
    if _EMBEDDING.fullmatch(layer.module):
        if layer.m is not None:
            raise Unsupported(
                f"{path} trains the embedding {layer.module} with DoRA.",
                why="mlx-lm scales its rows, where PEFT scales columns.",
                hint="Fuse it with mlx_lm.fuse.",
            )
        return {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
    views = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    if layer.m is not None:
        views[f"{module}.lora_magnitude_vector"] = renamed(layer.m, layer.b_shape[1:])
    return views


def _expert_views(path: Path, layer: _Layer, base: BaseFacts) -> dict[str, View]:
    """One pair of factors for each expert, under the checkpoint's names."""
    experts, outputs, rank = layer.b_shape
    inputs = layer.a_shape[-1]
    key = _EXPERTS.fullmatch(layer.module)
    names = () if key is None else _EXPERT_NAMES.get(key["part"], ())
    prefix = "" if key is None else f"{key['layer']}.experts"
    named = next((n for n in names if f"{prefix}.0.{n}.weight" in base.tensors), None)
    if named is None:
        raise Unsupported(
            f"{path}: the base has no expert for {layer.module} to change.",
            why="It stores its experts in one tensor, or under names that are not known.",
            hint="Fuse it with mlx_lm.fuse.",
        )
    if f"{prefix}.{experts}.{named}.weight" in base.tensors:
        raise BadInput(f"{path}: {layer.b} has {experts} experts, and the base has more.")
    views: dict[str, View] = {}
    for expert in range(experts):
        module = f"{PREFIX}{prefix}.{expert}.{named}"
        views[f"{module}.lora_A.weight"] = View(
            layer.a, (rank, inputs), start=expert * rank * inputs
        )
        views[f"{module}.lora_B.weight"] = View(
            layer.b, (outputs, rank), start=expert * outputs * rank
        )
    return views
