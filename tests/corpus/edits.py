"""Changes to a saved base or adapter, as functions of its directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.corpus.build import ADAPTER_FILE
from tests.corpus.case import Edit, Tensors


def _on_tensors(change: Callable[[Tensors], Tensors], file: str) -> Edit:
    def edit(directory: Path) -> None:
        path = directory / file
        changed = {k: v.contiguous() for k, v in change(load_file(path)).items()}
        save_file(changed, path, metadata={"format": "pt"})

    return edit


def on_adapter(change: Callable[[Tensors], Tensors]) -> Edit:
    return _on_tensors(change, ADAPTER_FILE)


def on_base(change: Callable[[Tensors], Tensors]) -> Edit:
    return _on_tensors(change, "model.safetensors")


def rename_keys(*pairs: tuple[str, str]) -> Edit:
    """Rewrite the adapter's keys by regular expressions, in turn; each must match something."""

    def change(tensors: Tensors) -> Tensors:
        for pattern, by in pairs:
            renamed = {re.sub(pattern, by, key): value for key, value in tensors.items()}
            if renamed.keys() == tensors.keys() or len(renamed) != len(tensors):
                raise ValueError(f"renaming {pattern} to {by} does nothing or loses keys")
            tensors = renamed
        return tensors

    return on_adapter(change)


def set_config(**values: Any) -> Edit:
    """Set keys of adapter_config.json."""

    def edit(directory: Path) -> None:
        path = directory / "adapter_config.json"
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps(config, indent=2, sort_keys=True))

    return edit


def drop_config(*keys: str) -> Edit:
    """Remove keys of adapter_config.json, as an older PEFT would not have written them."""

    def edit(directory: Path) -> None:
        path = directory / "adapter_config.json"
        config = {k: v for k, v in json.loads(path.read_text()).items() if k not in keys}
        path.write_text(json.dumps(config, indent=2, sort_keys=True))

    return edit


def all_of(*edits: Edit) -> Edit:
    def edit(directory: Path) -> None:
        for one in edits:
            one(directory)

    return edit


def write_file(name: str, data: bytes) -> Edit:
    def edit(directory: Path) -> None:
        (directory / name).write_bytes(data)

    return edit


def to_bin(directory: Path) -> None:
    """The adapter as PEFT wrote it before safetensors."""
    torch.save(load_file(directory / ADAPTER_FILE), directory / "adapter_model.bin")
    (directory / ADAPTER_FILE).unlink()


def base_to_bin(directory: Path) -> None:
    """The base as transformers wrote it before safetensors."""
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def _matching(tensors: Tensors, pattern: str) -> list[str]:
    found = [key for key in sorted(tensors) if re.search(pattern, key)]
    if not found:
        raise ValueError(f"no key matches {pattern}")
    return found


def drop_keys(pattern: str) -> Edit:
    def change(tensors: Tensors) -> Tensors:
        gone = set(_matching(tensors, pattern))
        return {key: value for key, value in tensors.items() if key not in gone}

    return on_adapter(change)


def add_key(key: str, *shape: int) -> Edit:
    return on_adapter(lambda tensors: {**tensors, key: torch.ones(*shape)})


def fill(pattern: str, value: float) -> Edit:
    """Put ``value`` into one element of the first matching tensor."""

    def change(tensors: Tensors) -> Tensors:
        tensors[_matching(tensors, pattern)[0]].view(-1)[0] = value
        return tensors

    return on_adapter(change)


def scale(pattern: str, factor: float) -> Edit:
    def change(tensors: Tensors) -> Tensors:
        for key in _matching(tensors, pattern):
            tensors[key] = tensors[key] * factor
        return tensors

    return on_adapter(change)


def zero_rows(pattern: str, rows: int) -> Edit:
    """The first rows of each matching tensor become zero."""

    def change(tensors: Tensors) -> Tensors:
        for key in _matching(tensors, pattern):
            tensors[key][:rows] = 0
        return tensors

    return on_adapter(change)


def negative_zeros(pattern: str) -> Edit:
    """Every third element of each matching base tensor becomes -0.0."""

    def change(tensors: Tensors) -> Tensors:
        for name in _matching(tensors, pattern):
            tensors[name].view(-1)[::3] = -0.0
        return tensors

    return on_base(change)


def narrow(pattern: str, dim: int) -> Edit:
    """Cut the last row or column off the first matching tensor."""

    def change(tensors: Tensors) -> Tensors:
        key = _matching(tensors, pattern)[0]
        tensors[key] = tensors[key].narrow(dim, 0, tensors[key].shape[dim] - 1)
        return tensors

    return on_adapter(change)


def truncate(directory: Path) -> None:
    """A download that stopped half-way."""
    path = directory / ADAPTER_FILE
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_pickle_bomb(directory: Path) -> None:
    """An adapter whose pickle would run code."""
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, ("__import__('os').system('true')",)

    (directory / ADAPTER_FILE).unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps({"x": Bomb()}))


def cast_base(pattern: str, dtype: torch.dtype) -> Edit:
    """Store some tensors of the base in another dtype, as many hub checkpoints do."""

    def change(tensors: Tensors) -> Tensors:
        names = set(_matching(tensors, pattern))
        return {k: v.to(dtype) if k in names else v for k, v in tensors.items()}

    return on_base(change)


def add_to_base(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Edit:
    """A tensor that no model class builds, such as a prediction head left by the training."""
    return on_base(lambda tensors: {**tensors, name: torch.full(shape, 0.5, dtype=dtype)})
