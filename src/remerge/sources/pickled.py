"""Old bases (``pytorch_model.bin``), through torch's restricted loader: no code of theirs runs.

Tensors are mapped, not read, and presented as the safetensors file they would be, so that the rest
of the package meets one kind of base.
"""

from __future__ import annotations

import pickle
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from remerge.errors import BadInput
from remerge.sources.dtypes import dtype_name
from remerge.sources.header import Header, build_header

if TYPE_CHECKING:
    import torch


class PickledFile:
    """A pickled state dict with the layout of a safetensors file: `header`, then the data."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path = path
        self._tensors: Mapping[str, torch.Tensor] = tensors
        self.header: Header = build_header(
            ((n, dtype_name(t.dtype), tuple(t.shape)) for n, t in tensors.items()),
            {"format": "pt"},
        )
        self._names = list(self.header.tensors)
        self._starts = [info.start for info in self.header.tensors.values()]

    def read_into(self, buffer: memoryview, offset: int, length: int) -> None:
        """Fill ``buffer[:length]`` with bytes of one or more tensors' data."""
        import torch

        position = offset - self.header.data_offset
        done = 0
        while done < length:
            name = self._names[bisect_right(self._starts, position + done) - 1]
            info = self.header.tensors[name]
            skip = position + done - info.start
            count = min(info.nbytes - skip, length - done)
            flat = self._tensors[name].detach().reshape(-1).view(torch.uint8)
            target = torch.frombuffer(buffer, dtype=torch.uint8, offset=done, count=count)
            target.copy_(flat[skip : skip + count])
            done += count


def open_pickled(path: Path) -> PickledFile:
    """Map a pickled state dict; raises `BadInput` for anything that is not plain tensors.

    Names that share one tensor's memory keep their first name only: safetensors holds no aliases.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError) as error:
        lines = str(error).strip().splitlines()
        raise BadInput(
            f"{path} cannot be loaded safely: {lines[0] if lines else type(error).__name__}",
            why="It is damaged, older than torch 1.6, or a pickle that would run code.",
            hint="Convert it once with transformers (from_pretrained, then save_pretrained).",
        ) from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in cast("dict[Any, Any]", loaded).items():
        if type(name) is not str or not isinstance(value, torch.Tensor):
            raise BadInput(f"{path}: entry {name!r} is not a tensor.")
        memory = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if memory not in seen or value.numel() == 0:
            seen.add(memory)
            tensors[name] = value
    return PickledFile(path, tensors)
