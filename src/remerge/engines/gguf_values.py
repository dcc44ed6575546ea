"""Run in llama.cpp's environment: the values of the converter's lazy tensors, some rows at a time.

What the converter takes over as it is, and what it only puts one below another (experts, fused
projections), is read from the merge row by row. What it changes is computed whole at the first
read of one of its rows, and let go after the last.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any, Protocol, cast

import gguf
import numpy as np
import torch
from conversion.base import LazyTorchTensor

from remerge.merging.merged import MergedCheckpoint, MergedTensor
from remerge.outputs.gguf.quantiser import Floats


class Rows(Protocol):
    """A tensor as a matrix: all dimensions but the last are rows."""

    def read(self, first: int, last: int) -> Floats:
        """Rows ``first`` to before ``last``: float32 (rows, columns)."""
        ...


def lazy_tensor(merged: MergedCheckpoint, name: str) -> Any:
    """A tensor of the merge as the converter takes one: float32, nothing read yet."""
    meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, tuple(merged[name].shape))
    return LazyTorchTensor(meta=meta, args=(merged[name],), func=_all_of)


def rows_of(lazy: Any) -> Rows:
    """How to read a tensor that the converter gave."""
    if isinstance(lazy, gguf.LazyNumpyTensor) and _is_unchanged(lazy):
        return rows_of(lazy._args[0])
    if not isinstance(lazy, LazyTorchTensor):
        return _Whole(lazy)
    # What the library says of it is that of an empty tuple.
    arguments = cast("tuple[Any, ...]", lazy._args)
    if lazy._func is _all_of:
        return _Direct(arguments[0])
    dimension = lazy._kwargs.get("dim", next(iter(arguments[1:]), 0))
    if lazy._func in (torch.stack, torch.cat) and dimension == 0:
        return _below_one_another(arguments[0])
    return _Whole(lazy)


def _all_of(tensor: MergedTensor) -> torch.Tensor:
    return tensor[...].float()


def _is_unchanged(lazy: Any) -> bool:
    """Whether this is what `numpy()` made of a torch tensor, or `astype(float32)` of float32."""
    source, *rest = lazy._args
    if isinstance(source, LazyTorchTensor):
        return not rest
    is_float = isinstance(source, gguf.LazyNumpyTensor) and source.dtype == np.float32
    return is_float and rest == [np.float32]


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1] if shape else 1


@dataclass(frozen=True)
class _Direct:
    """Rows of the merge."""

    tensor: MergedTensor

    def read(self, first: int, last: int) -> Floats:
        count, columns = _matrix(self.tensor.shape)
        if len(self.tensor.shape) < 2:
            return _all_of(self.tensor).reshape(count, columns).numpy()[first:last]
        # Rows of rows: whole ones are read around the ones asked for.
        each = count // self.tensor.shape[0]
        start = first // each
        found = self.tensor[start : -(-last // each)].float().reshape(-1, columns)
        return found.numpy()[first - start * each : last - start * each]


@dataclass(frozen=True)
class _Parts:
    """Parts one below another; ``starts`` are their first rows, and the end."""

    parts: tuple[Rows, ...]
    starts: tuple[int, ...]

    def read(self, first: int, last: int) -> Floats:
        found = [
            part.read(max(first, start) - start, min(last, end) - start)
            for part, (start, end) in zip(self.parts, pairwise(self.starts), strict=True)
            if start < last and end > first
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)


def _below_one_another(parts: Sequence[Any]) -> Rows:
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + _matrix(tuple(part.shape))[0])
    return _Parts(tuple(map(rows_of, parts)), tuple(starts))


class _Whole:
    """A tensor that the converter changes, while its rows are read in their order."""

    def __init__(self, lazy: Any) -> None:
        self._lazy = lazy
        self._count, self._columns = _matrix(tuple(lazy.shape))
        self._lock = Lock()
        self._values: Floats | None = None
        self._left = self._count

    def read(self, first: int, last: int) -> Floats:
        with self._lock:
            if self._values is None:
                values = np.asarray(_evaluate(self._lazy), dtype=np.float32)
                self._values = values.reshape(-1, self._columns)
            found = self._values[first:last]
            self._left -= last - first
            if self._left <= 0:
                # The rows at hand keep it until they are quantised; nothing else does.
                self._values = None
        return found


def _evaluate(lazy: Any) -> Any:
    """The values of a lazy tensor. Unlike its own way, nothing is kept in it: the writer knows all
    tensors to the end."""
    if isinstance(lazy, gguf.LazyChunkedTensor):
        return np.concatenate([np.asarray(chunk()) for chunk in lazy._chunks])

    def eager(value: Any) -> Any:
        if value._data is not None:
            return value._data
        return value._func(*gguf.LazyBase._recurse_apply(value._args, eager), **value._kwargs)

    return gguf.LazyBase._recurse_apply(lazy, eager)
