"""What is known of a base and an adapter before any weight is read, and a way to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class TensorFacts(Protocol):
    """What the header of a checkpoint says about one tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """A safetensors dtype name, e.g. ``BF16``."""
        ...


@dataclass(frozen=True)
class ModelHint:
    """What the adapter's config says about the class it was trained with.

    ``task_type`` is PEFT's (``CAUSAL_LM``, ``SEQ_CLS``, ...); ``base_model_class`` comes from
    ``auto_mapping``, which PEFT writes where there is no task.
    """

    task_type: str | None = None
    base_model_class: str | None = None


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
class FactorShapes:
    """Shapes of the two factors that an adapter has for one layer, None where one is missing or the
    family has no such factors.

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
    brings, or whose rows it replaces, with the shapes of what it holds. ``order`` says that it
    depends on the order of the model's modules, which names alone do not tell.
    """

    modules: Mapping[str, tuple[FactorShapes, ...]]
    parameters: Mapping[str, tuple[int, ...]]
    order: bool = False
