"""An artefact's model in memory, parts of which are put right and back again: what the rest of it
does alone. One model, and of a part that is right for the moment its own values beside it."""

# transformers' automatic classes have no types.
# pyright: basic

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from remerge.adapters.meta_model import quiet
from remerge.adapters.model_names import ModelNames
from remerge.adapters.regions import Region, matrix_view
from remerge.engines.shared_model import copy_region, merged_rows, taken_from
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import Plan


@dataclass(frozen=True)
class _Part:
    """Where values of a stored tensor lie in the model: the parameter and its matrix view."""

    parameter: torch.Tensor
    view: torch.Tensor
    region: Region


class RepairedModel:
    """``model`` holds an artefact's values under the names of ``plan``, the merge in float32."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self._plan = model, plan
        self._parts = _parts(model, plan)
        self._own: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._merged: MergedCheckpoint | None = None
        # Whether the artefact's values are gone, as too many of them were replaced.
        self.spent = False

    def repair(self, tensors: Collection[str]) -> Any:
        """The model with the merge's values in these stored tensors, all else the artefact's own.

        Where they are most of the model, its own values are not kept: it is ``spent``.
        """
        self._undo()
        parts = [part for name in tensors for part in self._parts.get(name, ())]
        parameters = {id(part.parameter): part.parameter for part in parts}
        every = sum(parameter.numel() for parameter in self.model.parameters())
        if 2 * sum(parameter.numel() for parameter in parameters.values()) > every:
            self.spent = True
        else:
            self._own = [(value, value.detach().clone()) for value in parameters.values()]
        read = merged_rows(self._open())
        for part in parts:
            copy_region(part.view, part.region, read)
        return self.model

    def stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the merge that the model holds, name by name, as the artefact has it:
        float32 of the stored shape."""
        for name, parts in self._parts.items():
            values = torch.empty(matrix_view(self._plan.tensors[name].shape), dtype=torch.float32)
            if _fills(parts, values.shape):
                for part in parts:
                    taken_from(part.view, part.region, values)
                yield name, values.view(-1)

    def close(self) -> None:
        if self._merged is not None:
            self._merged.close()

    def _open(self) -> MergedCheckpoint:
        if self._merged is None:
            self._merged = self._plan.open(torch.device("cpu"))
        return self._merged

    def _undo(self) -> None:
        for value, own in self._own:
            value.data.copy_(own)
        self._own = []


def _parts(model: Any, plan: Plan) -> dict[str, list[_Part]]:
    """All parts of the model by stored tensor, those of tied parameters once."""
    with quiet():
        names = ModelNames(model, plan.tensors)
    found: dict[str, list[_Part]] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        kind = names.layer(name.rpartition(".")[0])
        view = value.data.view(matrix_view(value.shape, "" if kind is None else kind.kind))
        for region in names.regions(name):
            found.setdefault(region.tensor, []).append(_Part(value, view, region))
    return found


def _fills(parts: Collection[_Part], shape: tuple[int, ...]) -> bool:
    """Whether the parts are all of a tensor."""
    covered = sum(len(part.region.rows) * len(part.region.cols) for part in parts)
    return covered >= shape[0] * shape[1]
