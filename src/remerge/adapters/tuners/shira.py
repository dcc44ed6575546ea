"""SHiRA (arXiv:2406.13175; PEFT tuners/shira): a few values of the weight, each changed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.weights import Weight, fits, weight_of
from remerge.errors import BadInput


class ShiraConfig(PeftConfig):
    """``r`` says how many values: as many as LoRA of that rank would have."""

    r: Rank = 32


@dataclass(frozen=True)
class SparseAdded:
    """Adds single values: ``entries (3, n)`` are rows, columns and values, sorted by row and then
    by column, no place twice."""

    entries: Factor
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.entries,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        entries = load(self.entries)
        positions = np.asarray(rows)
        # Only the entries between the block's first and last row can be in it.
        ends = entries.new_tensor([positions.min(), positions.max() + 1])
        first, last = torch.searchsorted(entries[0], ends)
        near = entries[:, int(first) : int(last)]
        down, has_row = _places(positions, near[0])
        across, has_col = _places(np.asarray(cols), near[1])
        inside = has_row & has_col
        block[down[inside], across[inside]] += near[2][inside]


def _places(
    positions: npt.NDArray[np.int64], wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each wanted position stands among these, and whether it does."""
    order = torch.as_tensor(np.argsort(positions, kind="stable"), device=wanted.device)
    held = torch.as_tensor(positions, device=wanted.device)[order].to(wanted.dtype)
    at = torch.searchsorted(held, wanted.contiguous()).clamp(max=held.numel() - 1)
    return order[at], held[at] == wanted


def _edits(context: Reading[ShiraConfig], layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Reading[ShiraConfig], parts: Parts) -> list[Edit]:
    names = context.all_of(parts, "weight", "indices", prefix="shira_")
    weight = weight_of(context, parts, ("Linear",))
    if names is None or weight is None:
        return []
    values, indices = names
    count = context.config.r * (weight.outputs + weight.inputs)
    if not fits(context, values, (count,), weight) or not fits(
        context, indices, (2, count), weight
    ):
        return []
    return [Edit(weight.parameter, (SparseAdded(_entries(context, values, indices, weight)),))]


def _entries(context: Reading[ShiraConfig], values: str, indices: str, weight: Weight) -> Factor:
    def read() -> torch.Tensor:
        # PEFT on Windows stores the places as floats, and cuts them to integers on load.
        places = context.adapter.read(indices).to(torch.int64)
        sizes = torch.tensor(weight.view).unsqueeze(1)
        if bool(((places < 0) | (places >= sizes)).any()):
            raise BadInput(
                f"Adapter tensor {indices} names places outside of {weight.parameter}, which has "
                f"shape {weight.shape}.",
                why="The file is damaged, or belongs to another base.",
                hint="Give the base that the adapter was trained on.",
            )
        flat = (places[0] * weight.view[1] + places[1]).numpy()
        where, order = np.unique(flat, return_inverse=True)
        stored = context.adapter.read(values).to(torch.float64).numpy()
        found = np.zeros((3, flat.size))
        # Places named twice get the sum; what is left over lies behind the last row.
        found[0] = weight.view[0]
        found[:2, : where.size] = np.divmod(where, weight.view[1])
        found[2, : where.size] = np.bincount(order, weights=stored, minlength=where.size)
        return torch.as_tensor(found)

    return made((3, context.stored(values)[0]), read)


SHIRA = Tuner("shira", ShiraConfig, part_keys("shira", "weight", "indices"), _edits)
