"""PEFT as the oracle: it merges in float32, remerge's changes are applied to the same base."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from remerge.adapters import families
from remerge.adapters.adapter import AdapterTensor, open_adapter
from remerge.adapters.deltas import Change, Changes, Factor, Window
from remerge.adapters.names import ModelHint, find_names
from remerge.adapters.regions import Layer, Names, Region, matrix_view
from remerge.sources.dtypes import dtype_name, torch_dtype

KINDS = (Conv1D, nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Base:
    """`BaseFacts` of tensors in memory."""

    values: Tensors
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, AdapterTensor]:
        return {
            n: AdapterTensor(dtype_name(v.dtype), tuple(v.shape)) for n, v in self.values.items()
        }


@dataclass(frozen=True)
class Matrix:
    """`BaseMatrix` of a tensor in memory after the first steps of its change."""

    values: torch.Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.values.shape)

    def rows(self, rows: range) -> torch.Tensor:
        return self.values[rows.start : rows.stop].clone()


class ModuleNames:
    """`Names` where the checkpoint is the state dict of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.held = dict(module.named_modules())
        self.shapes = {n: tuple(v.shape) for n, v in module.state_dict().items()}

    def modules(self) -> list[str]:
        return list(self.held)

    def layer(self, module: str) -> Layer | None:
        found = self.held.get(module)
        if found is None:
            return None
        kind = next((known for known in KINDS if isinstance(found, known)), type(found))
        return Layer(
            kind.__name__, getattr(found, "groups", 1), getattr(found, "is_transposed", False)
        )

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        return self.shapes.get(parameter)

    def regions(self, parameter: str) -> tuple[Region, ...]:
        layer = self.layer(parameter.rpartition(".")[0])
        rows, cols = map(range, matrix_view(self.shapes[parameter], layer.kind if layer else ""))
        return (Region(parameter, rows, cols, parameter, rows, cols),)

    def tied(self, parameter: str) -> tuple[str, ...]:
        return ()

    def checkpoint_name(self, parameter: str) -> str:
        return parameter


def trained(model: nn.Module, config: LoraConfig, out: Path, scale: float = 0.3) -> PeftModel:
    """A PEFT model with random trained values, saved to ``out``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, config)
        with torch.no_grad():
            for name, value in peft.named_parameters():
                if value.requires_grad:
                    noise = torch.randn_like(value) * scale
                    value.add_(noise if "magnitude" not in name else noise.abs())
        peft.save_pretrained(out)
    return peft


def merged_module(module: nn.Module, adapter: Path) -> Tensors:
    """What PEFT makes of a module and a saved adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = PeftModel.from_pretrained(copy.deepcopy(module), str(adapter))
        return peft.merge_and_unload().state_dict()


def merged_model(model: Any, adapter: Path, out: Path) -> tuple[Tensors, dict[str, Any]]:
    """PEFT's merge of a transformers model as it saves it: tensors and config.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(out)
    return load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


def changes_of(base: Base, adapter: Path, names: Names | None = None) -> Changes:
    """The changes that remerge reads from an adapter directory."""
    opened = open_adapter(adapter)
    if names is None:
        hint = ModelHint(opened.config.get("task_type"))
        names = find_names(base.config, base.tensors, hint, families.wanted(opened))
    return families.changes(opened, base, names)


def applied(base: Base, changes: Changes, seed: int | None = None) -> Tensors:
    """The output's tensors; with a seed in random windows instead of all at once."""
    kept = {n: v for n, v in base.values.items() if n not in changes.dropped}
    return kept | {n: apply(base, c, seed) for n, c in changes.tensors.items()}


def apply(base: Base, change: Change, seed: int | None = None) -> torch.Tensor:
    """One tensor of the output."""
    rows, cols = change.view
    assert rows * cols == math.prod(change.shape)
    start = torch.full((rows, cols), math.nan, dtype=torch.float64)
    if change.reads_base:
        start = base.values[change.source or change.tensor].to(torch.float64).reshape(rows, cols)
    cache: dict[int, torch.Tensor] = {}

    def load(factor: Factor) -> torch.Tensor:
        if id(factor) not in cache:
            cache[id(factor)] = factor.read()
            assert cache[id(factor)].shape == factor.shape
            assert cache[id(factor)].dtype == torch.float64
        return cache[id(factor)]

    now, whole = start.clone(), Window(range(rows), range(cols))
    prepared = []
    for step in change.steps:
        prepared.append(step.prepare(Matrix(now.clone(), torch_dtype(change.dtype)), load))
        step.apply(now, whole, load, prepared[-1])
    if seed is not None:
        pieces = start.clone()
        for window in windows(rows, cols, random.Random(seed)):
            at = (
                slice(window.rows.start, window.rows.stop),
                slice(window.cols.start, window.cols.stop),
            )
            tile = pieces[at].clone()
            for step, numbers in zip(change.steps, prepared, strict=True):
                step.apply(tile, window, load, numbers)
            pieces[at] = tile
        torch.testing.assert_close(pieces, now, rtol=1e-12, atol=1e-12)
    return now.reshape(change.shape).to(torch.float32).to(torch_dtype(change.dtype))


def windows(rows: int, cols: int, rng: random.Random) -> list[Window]:
    """A random tiling of the matrix."""
    found = []
    row = 0
    while row < rows:
        height = min(rng.randint(1, max(1, rows // 2)), rows - row)
        col = 0
        while col < cols:
            width = min(rng.randint(1, cols), cols - col)
            found.append(Window(range(row, row + height), range(col, col + width)))
            col += width
        row += height
    return found


def save_base(model: Any, out: Path) -> Base:
    """A transformers model saved as a base, and what remerge sees of it."""
    model.save_pretrained(out)
    return Base(load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text()))


def assert_same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Equal names, shapes and dtypes, values within float32's rounding of the same sums."""
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        torch.testing.assert_close(
            ours[name], value, rtol=2e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def check_module(module: nn.Module, config: LoraConfig, tmp: Path) -> Changes:
    """Merge a trained adapter on a bare module both ways and compare."""
    base = Base({n: v.clone() for n, v in module.state_dict().items()})
    trained(copy.deepcopy(module), config, tmp / "adapter")
    changes = changes_of(base, tmp / "adapter", ModuleNames(module))
    ours = applied(base, changes, seed=0)
    theirs = merged_module(module, tmp / "adapter")
    assert_same(ours, theirs)
    touched = [n for n in ours if not torch.equal(ours[n], base.values[n])]
    assert touched, "the adapter changed nothing"
    return changes


def check_model(model: Any, config: LoraConfig, tmp: Path) -> tuple[Base, Changes, Tensors]:
    """Merge a trained adapter on a transformers model both ways and compare, names included."""
    base = save_base(model, tmp / "base")
    trained(copy.deepcopy(model), config, tmp / "adapter")
    changes = changes_of(base, tmp / "adapter")
    ours = applied(base, changes, seed=0)
    theirs, their_config = merged_model(copy.deepcopy(model), tmp / "adapter", tmp / "peft")
    assert_same(ours, theirs)
    for key, value in changes.config.items():
        assert their_config.get(key, value) == value, key
    return base, changes, ours


def write_output(base: Base, changes: Changes, ours: Tensors, out: Path) -> None:
    """The merged checkpoint as files, for from_pretrained."""
    config = copy.deepcopy(dict(base.config))
    for key, value in changes.config.items():
        place = config
        *path, last = key.split(".")
        for part in path:
            place = place[part]
        place[last] = value
    out.mkdir()
    save_file(ours, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
