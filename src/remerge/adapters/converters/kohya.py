"""One .safetensors file of kohya's sd-scripts, LyCORIS or diffusers, for one component of a model.

The change of a layer is ``alpha / rank * up @ down`` (sd-scripts networks/lora.py, merge_to), for a
convolution that of the two composed; without an alpha it is the rank, so the scale is 1. diffusers
states one in the file's metadata, if at all (loaders/lora_base.py). LyCORIS' ``hada_*`` and
``lokr_*`` are PEFT's LoHa and LoKr, which were taken from there.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from remerge.adapters.converters.components import Modules, choose_component, modules_of
from remerge.adapters.converters.diffusion_keys import DiffusionKey, read_key
from remerge.adapters.converters.numbers import finite
from remerge.adapters.converters.scales import patterns
from remerge.adapters.converters.views import View, as_stored, present, renamed
from remerge.adapters.facts import BaseFacts
from remerge.adapters.keys import PREFIX
from remerge.adapters.opened import Adapter
from remerge.adapters.patterns import Patterns
from remerge.adapters.tensor_files import TensorFile, open_safetensors
from remerge.errors import BadInput, Unsupported
from remerge.sources.documents import as_object
from remerge.sources.header import read_header
from remerge.sources.links import check_inside

NAME = "kohya or diffusers"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

_METADATA = "lora_adapter_metadata"
_FAMILIES = {"hada_": "LOHA", "lokr_": "LOKR"}
_RANKED = ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")


@dataclass(frozen=True)
class _Stated:
    """What the file's metadata says of one component's adapter."""

    alpha: float | None
    alphas: Patterns[float]
    rank_stabilised: bool


def recognises(path: Path) -> bool:
    """Whether the directory holds one such file, and neither a base nor a PEFT adapter."""
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return False
    file = _file(path)
    if file is None or file.name == DIFFUSERS_FILE:
        return file is not None
    try:
        return any(read_key(name) is not None for name in read_header(file).tensors)
    except BadInput:
        return False


def open_(path: Path) -> Adapter:
    """The adapter under the file's names; `Adapter.for_base` tells it in PEFT's terms.

    Raises `BadInput` for a damaged file and for a name of no known style.
    """
    weights = _file(path)
    assert weights is not None
    check_inside(weights, path)
    file = open_safetensors(weights)
    keys: dict[str, DiffusionKey] = {}
    for name in file.tensors:
        key = read_key(name)
        if key is None:
            raise BadInput(
                f"{weights}: {name} belongs to no component that is known.",
                why="kohya's names begin with lora_unet_ or lora_te_, diffusers' with unet., "
                "transformer. or text_encoder.",
            )
        keys[name] = key
    if not keys:
        raise BadInput(f"{weights} holds no tensor.", why="It was saved before training.")
    convert = partial(_converted, weights, file, keys)
    return as_stored(path, NAME, (weights.name,), file, {}, convert)


def _file(path: Path) -> Path | None:
    if (path / DIFFUSERS_FILE).exists():
        return path / DIFFUSERS_FILE
    found = sorted(path.glob("*.safetensors"))
    return found[0] if len(found) == 1 and found[0].is_file() else None


def _converted(
    weights: Path, file: TensorFile, keys: Mapping[str, DiffusionKey], base: BaseFacts
) -> Adapter:
    modules = modules_of(base)
    sizes = {n: file.tensors[n].shape[0] for n, k in keys.items() if _says_outputs(file, n, k)}
    component = choose_component(weights, keys, sizes, modules)
    layers: dict[str, dict[str, str]] = {}
    for name, key in keys.items():
        if key.component != component:
            continue
        if not key.known:
            raise Unsupported(
                f"{weights}: {name} is a part of a change that is not known.",
                why="LoRA, DoRA, LoHa and LoKr are.",
            )
        parts = layers.setdefault(modules.find(key)[0], {})
        if key.part in parts:
            raise BadInput(f"{weights}: {parts[key.part]} and {name} are for the same place.")
        parts[key.part] = name
    family = _family(weights, layers)
    if family == "LORA":
        views, ranks = _lora(weights, file, layers, modules)
    else:
        views, ranks = _lycoris(file, layers)
    stated = _stated(weights, file.metadata.get(_METADATA), component)
    alphas = {
        module: _alpha(weights, file, parts["alpha"])
        if "alpha" in parts
        else stated.alphas.value(module, ranks[module] if stated.alpha is None else stated.alpha)
        for module, parts in layers.items()
    }
    config = {
        "peft_type": family,
        "use_dora": any("magnitude" in parts for parts in layers.values()),
        "use_rslora": stated.rank_stabilised,
        **patterns(ranks, alphas, "lora_alpha" if family == "LORA" else "alpha"),
    }
    notes = _notes(weights, component, keys)
    return present(weights.parent, NAME, (weights.name,), file, config, views, notes)


def _says_outputs(file: TensorFile, name: str, key: DiffusionKey) -> bool:
    return key.part == "B" and bool(file.tensors[name].shape)


def _notes(weights: Path, component: str, keys: Mapping[str, DiffusionKey]) -> tuple[str, ...]:
    others = Counter(key.component for key in keys.values() if key.component != component)
    if not others:
        return ()
    named = ", ".join(f"{count} of {name}" for name, count in sorted(others.items()))
    return (
        f"{weights.name} holds tensors for other components, which are not merged here: {named}. "
        f"Only those of {component} are.",
    )


def _family(weights: Path, layers: Mapping[str, Mapping[str, str]]) -> str:
    found = {
        _FAMILIES.get(part[:5], "LORA"): name
        for parts in layers.values()
        for part, name in parts.items()
        if part not in ("alpha", "magnitude")
    }
    if len(found) == 1:
        return next(iter(found))
    raise Unsupported(
        f"{weights} mixes kinds of changes: {', '.join(found.values()) or 'it has no factors'}.",
        why="They are merged one kind at a time.",
    )


def _lora(
    weights: Path, file: TensorFile, layers: Mapping[str, Mapping[str, str]], modules: Modules
) -> tuple[dict[str, View], dict[str, int]]:
    views: dict[str, View] = {}
    ranks: dict[str, int] = {}
    for module, parts in layers.items():
        there = modules.shapes[module]
        if not {"A", "B"} <= set(parts):
            raise BadInput(
                f"{weights}: {module} has {', '.join(sorted(parts.values()))}, and no pair of "
                "factors.",
                why="The file is not whole.",
            )
        a, b = (file.tensors[parts[part]].shape for part in ("A", "B"))
        ones = (1,) * (len(there) - 2)
        rank = a[0] if a else 0
        if 0 in (rank, *a, *b) or b[1:] != (rank, *(1,) * (len(b) - 2)):
            raise BadInput(
                f"{weights}: {parts['A']} has shape {a} and {parts['B']} {b}, which are no factors "
                "of one rank.",
            )
        # A 1x1 convolution and a matrix hold the same elements in the same order.
        pointwise = len(a) >= 2 and math.prod(a[2:]) == 1
        prefix = PREFIX + module
        views[f"{prefix}.lora_A.weight"] = renamed(parts["A"], (*a[:2], *ones) if pointwise else a)
        views[f"{prefix}.lora_B.weight"] = renamed(parts["B"], (b[0], rank, *ones))
        if "magnitude" in parts:
            views[f"{prefix}.lora_magnitude_vector"] = _magnitude(weights, file, parts, b[0], ones)
        ranks[module] = rank
    return views, ranks


def _magnitude(
    weights: Path, file: TensorFile, parts: Mapping[str, str], outputs: int, ones: tuple[int, ...]
) -> View:
    """One magnitude for each output, as PEFT has it: (out), for convolutions (1, out, 1, 1)."""
    name = parts["magnitude"]
    shape = file.tensors[name].shape
    # LyCORIS also knows one number for each input, of shape (1, in): in may be out.
    if math.prod(shape) != outputs or (name.endswith(".dora_scale") and shape[:1] != (outputs,)):
        raise Unsupported(
            f"{weights}: {name} has shape {shape}, where the layer has {outputs} outputs.",
            why="It scales the layer's columns (LyCORIS without wd_on_output); PEFT scales rows.",
        )
    return renamed(name, (1, outputs, *ones) if ones else (outputs,))


def _lycoris(
    file: TensorFile, layers: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, View], dict[str, int]]:
    """LoHa's and LoKr's tensors have PEFT's names and shapes; the family checks them."""
    views: dict[str, View] = {}
    ranks: dict[str, int] = {}
    for module, parts in layers.items():
        ranks[module] = 1
        for part, name in parts.items():
            shape = file.tensors[name].shape
            if part == "magnitude":
                raise Unsupported(f"{name} is a magnitude of DoRA beside LoHa or LoKr.")
            if part != "alpha":
                views[f"{PREFIX}{module}.{part}"] = renamed(name, shape)
            if part in _RANKED and shape:
                ranks[module] = max(1, shape[0])
    return views, ranks


def _alpha(weights: Path, file: TensorFile, name: str) -> float:
    shape = file.tensors[name].shape
    if math.prod(shape) != 1:
        raise BadInput(f"{weights}: {name} has shape {shape}, where one number is needed.")
    return finite({name: float(file.read(name, 0, 1)[0])}, name, weights)


def _stated(weights: Path, metadata: str | None, component: str) -> _Stated:
    try:
        fields = as_object(json.loads(metadata)) if metadata else {}
    except (ValueError, RecursionError):
        fields = None
    if fields is None:
        raise BadInput(f"{weights}: its metadata {_METADATA} is no JSON object.")
    prefix = f"{component}."
    own = {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}
    alpha = finite(own, "lora_alpha", weights) if own.get("lora_alpha") is not None else None
    entries = as_object(own.get("alpha_pattern")) or {}
    alphas: dict[str, Any] = {pattern: finite(entries, pattern, weights) for pattern in entries}
    return _Stated(alpha, Patterns("alpha_pattern", alphas), own.get("use_rslora") is True)
