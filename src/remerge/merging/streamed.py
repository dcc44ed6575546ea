"""A matrix that is known piece by piece: multiplied from either side, but never held.

It is read in blocks of rows of the stored tensors that hold it, always the same ones, so that no
budget and no number of threads changes a bit of a product. Products are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from remerge.merging.patches import Patch, parts, place


class Multiplied(Protocol):
    """A matrix that can be multiplied."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """``D @ right`` for float64 ``right`` (columns, k)."""
        ...

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """``D.T @ left`` for float64 ``left`` (rows, k)."""
        ...


@dataclass(frozen=True)
class Block:
    """A few rows of a patch, in the order of the stored tensor."""

    values: torch.Tensor
    at_rows: slice | torch.Tensor
    at_cols: slice | torch.Tensor
    transposed: bool


@dataclass
class Streamed:
    """One parameter's matrix view ``shape``, of which ``piece`` gives the values of any part.

    With ``keep`` it is computed once, by `measure`, and held.
    """

    name: str
    shape: tuple[int, int]
    patches: Sequence[Patch]
    piece: Callable[[Patch], torch.Tensor]
    keep: bool = False
    _kept: list[Block] | None = field(default=None, init=False)
    _scratch: torch.Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float64), init=False
    )

    def measure(self) -> float:
        """The squared Frobenius norm; the first pass."""
        squared = 0.0
        kept: list[Block] = []
        # One piece of memory goes back to the system as one; many small ones may not.
        held = sum(len(patch.rows) * len(patch.cols) for patch in self.patches)
        room: torch.Tensor | None = None
        for block in self._read():
            values = self._widened(block.values).flatten()
            squared += float(values @ values)
            if self.keep:
                room = torch.empty(held, dtype=block.values.dtype) if room is None else room
                here, room = room[: block.values.numel()], room[block.values.numel() :]
                here = here.view_as(block.values).copy_(block.values)
                kept.append(replace(block, values=here))
        if self.keep:
            self._kept = kept
        return squared

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """``D @ right`` for float64 ``right`` (columns, k)."""
        out = torch.zeros(self.shape[0], right.shape[1], dtype=torch.float64)
        for block in self._blocks():
            values = self._widened(block.values)
            out[block.at_rows] += (values.T if block.transposed else values) @ right[block.at_cols]
        return out

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """``D.T @ left`` for float64 ``left`` (rows, k)."""
        out = torch.zeros(self.shape[1], left.shape[1], dtype=torch.float64)
        for block in self._blocks():
            values = self._widened(block.values)
            out[block.at_cols] += (values if block.transposed else values.T) @ left[block.at_rows]
        return out

    def _widened(self, values: torch.Tensor) -> torch.Tensor:
        """The values in float64, in memory that the next call uses again: what is allocated and
        freed for every block, the system does not get back in time."""
        if self._scratch.numel() < values.numel():
            self._scratch = torch.empty(values.numel(), dtype=torch.float64)
        return self._scratch[: values.numel()].view(values.shape).copy_(values)

    def _blocks(self) -> Iterator[Block]:
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[Block]:
        for patch in self.patches:
            for part in parts(patch):
                across, down = place(part.at_rows), place(part.at_cols)
                yield Block(self.piece(part), across, down, part.transposed)
