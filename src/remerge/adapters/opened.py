"""An adapter as the rest of the package sees it: PEFT's configuration, PEFT's tensor names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remerge.adapters.facts import BaseFacts
from remerge.errors import BadInput
from remerge.sources.dtypes import torch_dtype
from remerge.sources.one_thread import one_thread
from remerge.sources.storage import file_digest

_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class AdapterTensor:
    """What the header says of an adapter's tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: configuration and headers now, values when asked.

    ``trainer`` names the program whose files these are; ``notes`` say what was made of them. An
    adapter of another trainer may need the base to be told in PEFT's terms: until `for_base` is
    called its tensors then have the names of the file, which fit no base.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, AdapterTensor]
    files: tuple[str, ...]
    _read: Callable[[str, int, int], torch.Tensor]
    _changed: Callable[[], bool]
    trainer: str = "PEFT"
    notes: tuple[str, ...] = ()
    _convert: Callable[[BaseFacts], Adapter] | None = None

    @property
    def rank(self) -> int:
        """The largest rank of its low-rank factors; 1 where it has none."""
        factors = (t.shape[0] for name, t in self.tensors.items() if ".lora_A" in name)
        return max(factors, default=1)

    def for_base(self, base: BaseFacts) -> Adapter:
        """This adapter in PEFT's terms for a base; itself where it already is.

        Raises `BadInput` when the base has no place for it, `Unsupported` when the trainer's files
        cannot be told in PEFT's terms.
        """
        return self if self._convert is None else self._convert(base)

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
        return {name: file_digest(self.path / name) for name in self.files}


@one_thread()
def check_finite(adapter: Adapter) -> None:
    """Refuse NaN and Inf in any of the adapter's values, naming the tensor."""
    for name, info in adapter.tensors.items():
        if not torch_dtype(info.dtype).is_floating_point:
            continue
        total = math.prod(info.shape)
        for start in range(0, total, _BLOCK_ELEMENTS):
            block = adapter.read_elements(name, start, min(_BLOCK_ELEMENTS, total - start))
            wide = block if block.dtype == torch.float64 else block.to(torch.float32)
            # One pass: NaN and Inf are what the smallest and the largest turn into.
            if block.numel() and not all(map(math.isfinite, map(float, torch.aminmax(wide)))):
                raise BadInput(
                    f"Adapter tensor {name} in {adapter.path} holds NaN or infinite values.",
                    why="Training diverged, or the file is damaged.",
                    hint="Use an earlier training checkpoint.",
                )
