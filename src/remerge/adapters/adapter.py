"""An adapter directory: its configuration, its tensors by name, its files' digests."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from remerge.errors import BadInput
from remerge.sources.documents import read_json_object
from remerge.sources.dtypes import dtype_name, torch_dtype
from remerge.sources.header import read_header
from remerge.sources.links import check_inside
from remerge.sources.storage import InputFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class AdapterTensor:
    """What the header says of an adapter's tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: configuration and headers now, values when asked."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, AdapterTensor]
    files: tuple[str, ...]
    _read: Callable[[str, int, int], torch.Tensor]
    _changed: Callable[[], bool]

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored."""
        shape = self.tensors[name].shape
        return self.read_elements(name, 0, math.prod(shape)).reshape(shape)

    def read_elements(self, name: str, start: int, count: int) -> torch.Tensor:
        """Elements of the tensor as stored, 1-D."""
        return self._read(name, start, count)

    def read_rows(self, name: str, rows: range) -> torch.Tensor:
        """Some rows (of the first axis) of the tensor as stored."""
        shape = self.tensors[name].shape
        width = math.prod(shape[1:])
        flat = self.read_elements(name, rows.start * width, len(rows) * width)
        return flat.reshape(len(rows), *shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(
            math.prod(t.shape) * torch_dtype(t.dtype).itemsize for t in self.tensors.values()
        )

    def changed(self) -> bool:
        """Whether the weight file is no longer the one that was opened."""
        return self._changed()

    def digests(self) -> dict[str, str]:
        """SHA-256 of each of the adapter's files that a merge depends on."""
        found: dict[str, str] = {}
        for name in self.files:
            with (self.path / name).open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return found


def open_adapter(path: Path) -> Adapter:
    """Read an adapter directory; the only adapter among its sub-folders also counts.

    Raises `BadInput` when it holds no adapter, several, or a damaged one.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory.", hint="Give the adapter's directory.")
    path = _adapter_folder(path)
    config = read_json_object(path / CONFIG)
    for name in (CONFIG, WEIGHTS, PICKLED):
        check_inside(path / name, path)
    if os.path.lexists(path / WEIGHTS):
        return _open_safetensors(path, config)
    if os.path.lexists(path / PICKLED):
        return _open_pickled(path, config)
    raise BadInput(
        f"{path} has {CONFIG} but neither {WEIGHTS} nor {PICKLED}.",
        why="The download or the training run's save is incomplete.",
    )


def check_finite(adapter: Adapter) -> None:
    """Refuse NaN and Inf in any of the adapter's values, naming the tensor."""
    for name, info in adapter.tensors.items():
        if not torch_dtype(info.dtype).is_floating_point:
            continue
        total = math.prod(info.shape)
        for start in range(0, total, _BLOCK_ELEMENTS):
            block = adapter.read_elements(name, start, min(_BLOCK_ELEMENTS, total - start))
            wide = block if block.dtype == torch.float64 else block.to(torch.float32)
            if not torch.isfinite(wide).all():
                raise BadInput(
                    f"Adapter tensor {name} in {adapter.path} holds NaN or infinite values.",
                    why="Training diverged, or the file is damaged.",
                    hint="Use an earlier training checkpoint.",
                )


def _adapter_folder(path: Path) -> Path:
    if (path / CONFIG).exists():
        return path
    named = sorted(child.parent.name for child in path.glob(f"*/{CONFIG}"))
    if len(named) == 1:
        return path / named[0]
    if named:
        raise BadInput(
            f"{path} holds {len(named)} adapters: {', '.join(named[:8])}.",
            hint=f"Pick one with {path.name}:{named[0]}.",
        )
    if (path / "config.json").exists():
        raise BadInput(
            f"{path} is a base checkpoint, not an adapter (it has config.json, no {CONFIG}).",
            hint="The base comes first: remerge merge BASE ADAPTER -o OUT.",
        )
    raise BadInput(f"{path} has no {CONFIG}.", why="It is not a PEFT adapter.")


def _open_safetensors(path: Path, config: Mapping[str, Any]) -> Adapter:
    header = read_header(path / WEIGHTS)
    file = InputFile(path / WEIGHTS)
    tensors = {n: AdapterTensor(i.dtype, i.shape) for n, i in header.tensors.items()}

    def read(name: str, start: int, count: int) -> torch.Tensor:
        info = header.tensors[name]
        dtype = torch_dtype(info.dtype)
        buffer = bytearray(count * dtype.itemsize)
        if not buffer:
            return torch.empty(0, dtype=dtype)
        offset = header.data_offset + info.start + start * dtype.itemsize
        file.read_into(memoryview(buffer), offset, len(buffer))
        return torch.frombuffer(buffer, dtype=dtype)

    return Adapter(path, config, _torch_only(path, tensors), (CONFIG, WEIGHTS), read, file.changed)


def _open_pickled(path: Path, config: Mapping[str, Any]) -> Adapter:
    """Old adapters are pickles: only torch's restricted loader touches them, so no code runs."""
    file = InputFile(path / PICKLED)
    try:
        loaded = torch.load(path / PICKLED, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # The format before torch 1.6 is no zip file and cannot be mapped.
        loaded = _load_unmapped(path / PICKLED)
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, TypeError) as error:
        raise _unsafe(path / PICKLED, error) from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{path / PICKLED} holds a {type(loaded).__name__}, not a state dict.")
    state = cast("dict[str, Any]", loaded)
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, torch.Tensor):
            raise BadInput(f"{path / PICKLED}: entry {name!r} is not a tensor.")
    tensors = {n: AdapterTensor(dtype_name(t.dtype), tuple(t.shape)) for n, t in state.items()}

    def read(name: str, start: int, count: int) -> torch.Tensor:
        return state[name].detach().reshape(-1)[start : start + count].clone()

    return Adapter(path, config, _torch_only(path, tensors), (CONFIG, PICKLED), read, file.changed)


def _load_unmapped(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError) as error:
        raise _unsafe(path, error) from error


def _unsafe(path: Path, error: Exception) -> BadInput:
    lines = str(error).strip().splitlines()
    return BadInput(
        f"{path} cannot be loaded safely: {lines[0] if lines else type(error).__name__}",
        why="It is damaged, or a pickle that holds more than tensors and would run code.",
        hint="Save the adapter again as safetensors.",
    )


def _torch_only(path: Path, tensors: dict[str, AdapterTensor]) -> dict[str, AdapterTensor]:
    for name, info in tensors.items():
        try:
            torch_dtype(info.dtype)
        except (KeyError, AttributeError) as error:
            raise BadInput(
                f"Adapter tensor {name} in {path} has dtype {info.dtype}, which this torch lacks."
            ) from error
        real = torch_dtype(info.dtype).is_floating_point
        if info.dtype == "C64" or ("lora_" in name and not real):
            raise BadInput(
                f"Adapter tensor {name} in {path} has dtype {info.dtype}; weights are real floats.",
                why="The file is damaged, or was not written by PEFT.",
            )
    return tensors
