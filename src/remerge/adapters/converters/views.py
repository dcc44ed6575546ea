"""Tensors of another trainer's file as PEFT would have stored them, rearranged when read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remerge.adapters.opened import Adapter, AdapterTensor
from remerge.adapters.tensor_files import TensorFile


@dataclass(frozen=True)
class View:
    """A tensor of PEFT's, made of a part of a stored one.

    The part begins at element ``start`` of ``source`` and has the shape ``stored``; ``arrange``
    makes a tensor of the shape ``shape`` of it, and is None where the elements keep their order.
    """

    source: str
    shape: tuple[int, ...]
    stored: tuple[int, ...] = ()
    start: int = 0
    arrange: Callable[[torch.Tensor], torch.Tensor] | None = None


def renamed(source: str, shape: tuple[int, ...]) -> View:
    """The stored tensor as it is."""
    return View(source, shape)


def transposed(source: str, shape: tuple[int, ...]) -> View:
    """A stored matrix turned; ``shape`` is the stored one."""
    return View(source, shape[::-1], shape, arrange=lambda part: part.T)


def present(
    path: Path,
    trainer: str,
    files: tuple[str, ...],
    file: TensorFile,
    config: Mapping[str, Any],
    views: Mapping[str, View],
    notes: tuple[str, ...] = (),
) -> Adapter:
    """The adapter with PEFT's configuration and, by PEFT's names, these views of its file.

    A rearranged tensor is read whole for any part of it; it is as small as an adapter's tensors.
    """

    def read(name: str, start: int, count: int) -> torch.Tensor:
        view = views[name]
        if view.arrange is None:
            return file.read(view.source, view.start + start, count)
        part = file.read(view.source, view.start, math.prod(view.stored)).reshape(view.stored)
        return view.arrange(part).reshape(-1)[start : start + count].clone()

    tensors = {n: AdapterTensor(file.tensors[v.source].dtype, v.shape) for n, v in views.items()}
    return Adapter(path, config, tensors, files, read, file.changed, trainer, notes)


def as_stored(
    path: Path,
    trainer: str,
    files: tuple[str, ...],
    file: TensorFile,
    config: Mapping[str, Any],
    convert: Callable[[Any], Adapter],
) -> Adapter:
    """The adapter under its own names, to be converted when the base is known."""
    return Adapter(
        path, config, file.tensors, files, file.read, file.changed, trainer, _convert=convert
    )
