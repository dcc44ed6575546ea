"""Numbers that need more of the base than a chunk: row norms, decompositions, thresholds.

Each is computed once per tensor, before its chunks, and is small. They are kept with the work in
progress, so that a resumed run and every worker use the same numbers; those that rest on LAPACK
stay beside the output, because another machine's LAPACK may round them differently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from remerge.adapters.deltas import BaseMatrix, Change, Decomposes, Load, Prepared, Window
from remerge.errors import BadInput, UsageError
from remerge.merging.budget import RESIDENT
from remerge.sources.dtypes import dtype_name, torch_dtype
from remerge.sources.header import build_header, read_header

Preparations = Mapping[str, Sequence[Prepared]]


@dataclass(frozen=True)
class StagedMatrix:
    """A base tensor after the first steps of its change: what the next step sees."""

    base: BaseMatrix | None
    change: Change
    prepared: Sequence[Prepared]
    load: Load
    device: torch.device
    others: Callable[[str], BaseMatrix] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.change.view

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.change.dtype)

    def other(self, tensor: str) -> BaseMatrix:
        if self.others is not None:
            return self.others(tensor)
        if self.base is None:
            raise ValueError(f"{self.change.tensor} is new: there is no base beside it")
        return self.base.other(tensor)

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
    change: Change,
    base: BaseMatrix | None,
    load: Load,
    device: torch.device,
    others: Callable[[str], BaseMatrix],
) -> tuple[Prepared, ...]:
    """Run the preparations of a change's steps, each on what the steps before it leave; ``others``
    gives the base's other tensors."""
    done: list[Prepared] = []
    for step in change.steps:
        staged = StagedMatrix(base, change, tuple(done), load, device, others)
        done.append(step.prepare(staged, load))
    return tuple(done)


def decomposes(change: Change) -> bool:
    """Whether the result is reproducible to the byte on one numerical stack only."""
    return _bytes_needed(change) > 0


def _bytes_needed(change: Change) -> int:
    steps = [step for step in change.steps if isinstance(step, Decomposes)]
    return max((step.bytes_needed(change.view) for step in steps), default=0)


def check_memory(change: Change, max_memory: int) -> None:
    """Refuse, before any work, a preparation that does not fit the memory budget."""
    needed = _bytes_needed(change)
    if needed and needed + RESIDENT > max_memory:
        total = needed + RESIDENT
        raise UsageError(
            f"Tensor {change.tensor} ({change.view[0]} x {change.view[1]}) needs about "
            f"{total / 2**30:.1f} GiB for its decomposition, over the budget of "
            f"{max_memory / 2**30:.1f} GiB.",
            why="What this adapter was trained on takes a decomposition of the whole matrix.",
            hint=f"Run again with --max-memory {-(-total // 2**30)}GiB.",
        )


def save(path: Path, preparations: Preparations) -> None:
    """Write preparations as one safetensors-formatted file: ``tensor|step|name`` -> values."""
    flat = {
        f"{tensor}|{step}|{name}": values.contiguous()
        for tensor, steps in sorted(preparations.items())
        for step, numbers in enumerate(steps)
        for name, values in sorted(numbers.items())
    }
    header = build_header(
        ((name, dtype_name(values.dtype), tuple(values.shape)) for name, values in flat.items()), {}
    )
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header.raw)) + header.raw)
        for values in flat.values():
            stream.write(values.numpy().tobytes())


def restore(path: Path, steps: Mapping[str, int]) -> Preparations:
    """Read what `save` wrote; ``steps`` counts those of each changed tensor, which get empty
    preparations where there is no entry."""
    header = read_header(path)
    found: dict[str, list[dict[str, torch.Tensor]]] = {
        name: [{} for _ in range(count)] for name, count in steps.items()
    }
    with path.open("rb") as stream:
        for key, info in header.tensors.items():
            tensor, step, name = key.rsplit("|", 2)
            stream.seek(header.data_offset + info.start)
            data = bytearray(stream.read(info.nbytes))
            values = torch.frombuffer(data, dtype=torch_dtype(info.dtype)).reshape(info.shape)
            if tensor not in found or not int(step) < len(found[tensor]):
                raise BadInput(f"{path} does not belong to this merge ({tensor} is not in it).")
            found[tensor][int(step)][name] = values
    return found
