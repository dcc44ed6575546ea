"""What a family of adapters is told about the adapter and the base: headers, and a way to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from remerge.adapters.facts import TensorFacts


class AdapterFacts(Protocol):
    """A PEFT adapter directory: configuration and headers now, values when asked."""

    @property
    def path(self) -> object: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorFacts]: ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored."""
        ...

    def read_elements(self, name: str, start: int, count: int) -> torch.Tensor:
        """Elements of the tensor as stored, 1-D."""
        ...

    def read_rows(self, name: str, rows: range) -> torch.Tensor:
        """Rows of the tensor's first axis, as stored."""
        ...


class BaseFacts(Protocol):
    """A base checkpoint: config.json and headers. Quantised tensors appear as decoded."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorFacts]: ...


@dataclass(frozen=True)
class LoraShapes:
    """Shapes of the two factors of one LoRA layer, None where one is missing.

    They are those of a Linear: the weight has ``b[0]`` rows and ``a[1]`` columns. An embedding's
    factors are named and turned accordingly.
    """

    a: tuple[int, ...] | None
    b: tuple[int, ...] | None


@dataclass(frozen=True)
class Wanted:
    """What an adapter speaks of, before any name is looked up: the input of `find_names`.

    ``modules``: the paths of adapted modules with their factors' shapes, several where several
    parameters of a module are trained. ``parameters``: names of whole parameters that the adapter
    brings, or whose rows it replaces, with the shapes of what it holds.
    """

    modules: Mapping[str, tuple[LoraShapes, ...]]
    parameters: Mapping[str, tuple[int, ...]]
