"""Merged checkpoints that are broken on purpose, each way that a wrong merge or a bad copy is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]


def read(place: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(place.glob("*.safetensors")):
        found |= load_file(file)
    return found


def write(merged: Path, place: Path, changed: Tensors) -> Path:
    """A copy of ``merged`` with these tensors, and without its manifest."""
    shutil.copytree(merged, place, ignore=shutil.ignore_patterns("*.safetensors*", "remerge*"))
    tensors = {**read(merged), **changed}
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        place / "model.safetensors",
        metadata={"format": "pt"},
    )
    return place


def dropped(base: Tensors, merged: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    return {name: base[name] for name in names}


def flipped(base: Tensors, merged: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    return _scaled(base, merged, names, -1.0)


def halved(base: Tensors, merged: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    return _scaled(base, merged, names, 0.5)


def swapped(base: Tensors, merged: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    first, second = names
    return {first: merged[second], second: merged[first]}


def rounded(base: Tensors, merged: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    """Through int8, a scale a tensor."""
    found: dict[str, torch.Tensor] = {}
    for name in names:
        wide = merged[name].double()
        scale = wide.abs().max() / 127
        found[name] = ((wide / scale).round() * scale).to(merged[name].dtype)
    return found


def touched(base: Tensors, merged: Tensors, part: str) -> list[str]:
    """The tensors of a part that the adapter changed."""
    return [n for n in merged if n.startswith(f"{part}.") and not torch.equal(merged[n], base[n])]


def _scaled(
    base: Tensors, merged: Tensors, names: list[str], factor: float
) -> dict[str, torch.Tensor]:
    return {
        name: (base[name].double() + factor * (merged[name].double() - base[name].double())).to(
            merged[name].dtype
        )
        for name in names
    }


Break = Callable[[Tensors, Tensors, list[str]], dict[str, torch.Tensor]]


def named(suspects: list[str], wanted: str) -> bool:
    """Whether a part is among the first three suspects, itself or the layer that is all of it."""
    return any(one == wanted or one.startswith(f"{wanted}.") for one in suspects[:3])


def is_quantised(place: Path) -> bool:
    return "quantization_config" in json.loads((place / "config.json").read_text())
