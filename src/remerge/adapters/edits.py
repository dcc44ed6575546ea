"""What an adapter does to one parameter of the model, before names of the checkpoint are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic

import torch

from remerge.adapters.blocks import Step
from remerge.adapters.config import Config_co, PeftConfig
from remerge.adapters.deltas import Replaced
from remerge.adapters.facts import AdapterFacts, BaseFacts
from remerge.adapters.keys import Parts
from remerge.adapters.misfits import Misfits
from remerge.adapters.regions import Names, matrix_view


@dataclass(frozen=True)
class Edit:
    """Steps on one parameter, in the coordinates of its matrix view."""

    parameter: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Whole:
    """A parameter that the adapter brings whole.

    ``alone``: only this role of a tied parameter gets the values (a trained copy of the module);
    otherwise the values were written into the shared tensor.
    """

    parameter: str
    shape: tuple[int, ...]
    step: Replaced
    alone: bool


@dataclass(frozen=True)
class Reading(Generic[Config_co]):
    """Everything that the layers of one adapter are read with.

    ``wholes`` are the parameters that the adapter replaces: their shapes, not the base's, are
    those that low-rank steps must fit. ``recent`` reads a stored tensor and keeps the last few.
    """

    adapter: AdapterFacts
    base: BaseFacts
    names: Names
    config: Config_co
    misfits: Misfits
    wholes: Mapping[str, Whole]
    recent: Callable[[str], torch.Tensor]

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """The parameter's shape as the steps after a replacement see it."""
        whole = self.wholes.get(parameter)
        if whole is None:
            for other in self.names.tied(parameter):
                tied = self.wholes.get(other)
                if tied is not None and not tied.alone:
                    return tied.shape
        return self.names.shape(parameter) if whole is None else whole.shape

    def kind(self, parameter: str) -> str:
        """The kind of the layer that holds this parameter, '' where it is unknown."""
        layer = self.names.layer(parameter.rpartition(".")[0])
        return "" if layer is None else layer.kind

    def view(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """The matrix view of a parameter of this shape."""
        return matrix_view(shape, self.kind(parameter))

    def stored(self, tensor: str) -> tuple[int, ...]:
        """The shape of an adapter tensor."""
        return tuple(self.adapter.tensors[tensor].shape)

    def all_of(self, parts: Parts, *wanted: str, prefix: str = "") -> tuple[str, ...] | None:
        """The names of these parts' tensors, or None with a misfit where one is missing."""
        for part in wanted:
            if part not in parts.tensors:
                self.misfits.add(parts.any_tensor, f"its {prefix}{part} is missing", "unpaired")
                return None
        return tuple(parts.tensors[part] for part in wanted)

    def only(self, parts: Parts, allowed: frozenset[str]) -> bool:
        """Whether the layer has no other parts than these; a misfit for each that it has."""
        extra = [name for part, name in parts.tensors.items() if part not in allowed]
        for name in extra:
            self.misfits.add(
                name, f"adapter_config.json does not explain it on {parts.module}", "unknown"
            )
        return not extra


Context = Reading[PeftConfig]
