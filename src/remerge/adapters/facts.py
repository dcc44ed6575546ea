"""What is known of a checkpoint and of the class an adapter was trained with, before any read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


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


class FactorShapes(Protocol):
    """Shapes of the two factors of one LoRA layer, None where one is missing."""

    @property
    def a(self) -> tuple[int, ...] | None: ...

    @property
    def b(self) -> tuple[int, ...] | None: ...


class Wanted(Protocol):
    """What an adapter speaks of: layers with the shapes of their factors, and whole parameters
    that it brings with theirs."""

    @property
    def modules(self) -> Mapping[str, Sequence[FactorShapes]]: ...

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]: ...
