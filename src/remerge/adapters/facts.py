"""What is known of a checkpoint and of the class an adapter was trained with, before any read."""

from __future__ import annotations

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
