"""Numbers that need more of the base than a chunk: row norms, decompositions, thresholds.

Each is computed once per tensor, before its chunks, and is small. They are kept with the work in
progress, so that a resumed run and every worker use the same numbers; those that rest on LAPACK
stay beside the output, because another machine's LAPACK may round them differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import BaseMatrix, Change, Load, Prepared, Window
from remerge.errors import UsageError

Preparations = Mapping[str, Sequence[Prepared]]


@dataclass(frozen=True)
class StagedMatrix:
    """A base tensor after the first steps of its change: what the next step sees."""

    base: BaseMatrix | None
    change: Change
    prepared: Sequence[Prepared]
    load: Load
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        return self.change.view

    @property
    def dtype(self) -> torch.dtype:
        from remerge.sources.dtypes import torch_dtype

        return torch_dtype(self.change.dtype)

    def rows(self, rows: range) -> torch.Tensor:
        columns = self.shape[1]
        if self.base is None:
            tile = torch.zeros(len(rows), columns, dtype=torch.float64, device=self.device)
        else:
            tile = self.base.rows(rows)
        window = Window(rows, range(columns))
        for step, numbers in zip(self.change.steps, self.prepared, strict=False):
            step.apply(tile, window, self.load, numbers)
        return tile


def prepare(
    change: Change, base: BaseMatrix | None, load: Load, device: torch.device
) -> tuple[Prepared, ...]:
    """Run the preparations of a change's steps, each on what the steps before it leave."""
    done: list[Prepared] = []
    for step in change.steps:
        staged = StagedMatrix(base, change, tuple(done), load, device)
        done.append(step.prepare(staged, load))
    return tuple(done)


def check_memory(change: Change, max_memory: int) -> None:
    """Refuse, before any work, a preparation that does not fit the memory budget."""
    needed = max((step.memory_needed(change.view) for step in change.steps), default=0)
    if needed > max_memory:
        raise UsageError(
            f"Tensor {change.tensor} ({change.view[0]} x {change.view[1]}) needs about "
            f"{needed / 2**30:.1f} GiB for its decomposition, over the budget of "
            f"{max_memory / 2**30:.1f} GiB.",
            why="This kind of adapter is merged into a residual that takes a whole matrix at once.",
            hint=f"Run again with --max-memory {-(-needed // 2**30)}GiB.",
        )
