"""What a merged checkpoint has over its base: a matrix a parameter, multiplied but never held.

A parameter of the model may lie in several stored tensors, in pieces of any order (`Region`). Both
checkpoints store it alike, so that their difference is known piece by piece: it is read in blocks
of rows and multiplied from either side. A difference is rounded to float32, which is exact for
16-bit weights of like size and lets a matrix be kept where it fits; products are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from remerge.adapters.indices import as_vector
from remerge.errors import BadInput
from remerge.merging.patches import Patch, parts, place, stored_block
from remerge.sources.reading import Reader


@dataclass(frozen=True)
class Block:
    """A few rows of a patch: float32 values in the order of the stored tensor."""

    values: torch.Tensor
    at_rows: slice | torch.Tensor
    at_cols: slice | torch.Tensor
    transposed: bool


@dataclass(frozen=True)
class Extent:
    """The size of a difference: its squared Frobenius norm, and whether any value changed."""

    squared: float
    changed: bool


@dataclass
class Difference:
    """MERGED - BASE of one parameter's matrix view ``shape``; with ``keep`` it is read once."""

    name: str
    base: Reader
    merged: Reader
    shape: tuple[int, int]
    patches: Sequence[Patch]
    keep: bool = False
    _kept: list[Block] | None = None
    _equal: bool = field(default=True, init=False)
    _scratch: torch.Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float64), init=False
    )

    def measure(self) -> Extent:
        """The first pass. Raises `BadInput` for a value that is not finite on either side."""
        self._equal = True
        squared = 0.0
        kept: list[Block] = []
        # One piece of memory goes back to the system as one; many small ones may not.
        held = sum(len(patch.rows) * len(patch.cols) for patch in self.patches)
        room = torch.empty(held if self.keep else 0)
        for block in self._read():
            values = self._widened(block.values).flatten()
            squared += float(values @ values)
            if self.keep:
                here, room = room[: block.values.numel()], room[block.values.numel() :]
                here = here.view_as(block.values).copy_(block.values)
                kept.append(replace(block, values=here))
        if self.keep:
            self._kept = kept
        return Extent(squared, not self._equal)

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
                base = stored_block(self.base, part.base, part)
                merged = stored_block(self.merged, part.merged, part)
                values = self._difference(base, merged)
                across, down = place(part.at_rows), place(part.at_cols)
                yield Block(values, across, down, part.transposed)

    def _difference(self, base: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        if base.dtype == merged.dtype and torch.equal(_bits(base), _bits(merged)):
            return torch.zeros(base.shape)
        wide = torch.float64 if torch.float64 in (base.dtype, merged.dtype) else torch.float32
        values = (merged.to(wide) - base.to(wide)).to(torch.float32)
        if not torch.isfinite(values).all():
            raise self._not_finite(base, merged)
        # A base that was only stored in a narrower dtype did not change.
        self._equal = self._equal and torch.equal(base.to(merged.dtype), merged)
        return values

    def _not_finite(self, base: torch.Tensor, merged: torch.Tensor) -> BadInput:
        for side, told in ((base, "the base"), (merged, "the merged model")):
            if not torch.isfinite(side).all():
                return BadInput(
                    f"{self.name} holds NaN or infinity in {told}.",
                    why="No adapter leads to or from such a value.",
                    hint="Check that checkpoint; it may be damaged or overflown.",
                )
        return BadInput(f"{self.name} differs by more than float32 can say.")


def assembled(reader: Reader, patches: Sequence[Patch], shape: tuple[int, int]) -> torch.Tensor:
    """The merged side of a few rows of a parameter, as stored."""
    out: torch.Tensor | None = None
    for patch in patches:
        for part in parts(patch):
            values = stored_block(reader, part.merged, part)
            out = torch.zeros(shape, dtype=values.dtype) if out is None else out
            turned = values.T if part.transposed else values
            rows = torch.as_tensor(as_vector(part.at_rows))[:, None]
            out[rows, torch.as_tensor(as_vector(part.at_cols))] = turned
    assert out is not None
    return out


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)
