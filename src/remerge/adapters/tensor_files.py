"""Files of named tensors that adapters are stored in: safetensors, and pickles without code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from remerge.adapters.opened import AdapterTensor
from remerge.errors import BadInput
from remerge.sources.dtypes import dtype_name, torch_dtype
from remerge.sources.header import read_header
from remerge.sources.storage import InputFile


@dataclass(frozen=True)
class TensorFile:
    """One file's tensors: headers now, values when asked.

    ``read`` gives ``count`` elements of a tensor from ``start`` on, 1-D. ``metadata`` is the
    header's own (safetensors), empty for a pickle.
    """

    tensors: Mapping[str, AdapterTensor]
    read: Callable[[str, int, int], torch.Tensor]
    changed: Callable[[], bool]
    metadata: Mapping[str, str]


def open_safetensors(path: Path) -> TensorFile:
    """Raises `BadInput` for a damaged header or a dtype that torch lacks."""
    header = read_header(path)
    file = InputFile(path)
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

    return TensorFile(_checked(path.parent, tensors), read, file.changed, dict(header.metadata))


def open_pickled(path: Path) -> TensorFile:
    """Old adapters are pickles: only torch's restricted loader touches them, so no code runs.

    Raises `BadInput` for anything that is not a dictionary of tensors.
    """
    file = InputFile(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # The format before torch 1.6 is no zip file and cannot be mapped.
        loaded = _load_unmapped(path)
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, TypeError) as error:
        raise _unsafe(path, error) from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    state = cast("dict[str, Any]", loaded)
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, torch.Tensor):
            raise BadInput(f"{path}: entry {name!r} is not a tensor.")
    tensors = {n: AdapterTensor(dtype_name(t.dtype), tuple(t.shape)) for n, t in state.items()}

    def read(name: str, start: int, count: int) -> torch.Tensor:
        return state[name].detach().reshape(-1)[start : start + count].clone()

    return TensorFile(_checked(path.parent, tensors), read, file.changed, {})


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


def _checked(path: Path, tensors: dict[str, AdapterTensor]) -> dict[str, AdapterTensor]:
    for name, info in tensors.items():
        try:
            real = torch_dtype(info.dtype).is_floating_point
        except (KeyError, AttributeError) as error:
            raise BadInput(
                f"Adapter tensor {name} in {path} has dtype {info.dtype}, which this torch lacks."
            ) from error
        if info.dtype == "C64" or (".lora_" in name and not real):
            raise BadInput(
                f"Adapter tensor {name} in {path} has dtype {info.dtype}; weights are real floats.",
                why="The file is damaged, or was not written by PEFT.",
            )
    return tensors
