"""What a merged checkpoint has over its base: a matrix a parameter, multiplied but never held.

A parameter of the model may lie in several stored tensors, in pieces of any order (`Region`). Both
checkpoints store it alike, so that their difference is known piece by piece. A difference is
rounded to float32, which is exact for 16-bit weights of like size and lets a matrix be kept where
it fits; products are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from remerge.adapters.indices import as_vector
from remerge.errors import BadInput
from remerge.merging.patches import Patch, ReadsValues, parts, stored_block
from remerge.merging.streamed import Streamed
from remerge.sources.reading import Reader


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
    _equal: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._matrix = Streamed(self.name, self.shape, self.patches, self._piece, self.keep)

    def measure(self) -> Extent:
        """The first pass. Raises `BadInput` for a value that is not finite on either side."""
        self._equal = True
        return Extent(self._matrix.measure(), not self._equal)

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """``D @ right`` for float64 ``right`` (columns, k)."""
        return self._matrix.times(right)

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """``D.T @ left`` for float64 ``left`` (rows, k)."""
        return self._matrix.transposed_times(left)

    def _piece(self, part: Patch) -> torch.Tensor:
        base = stored_block(self.base, part.base, part)
        merged = stored_block(self.merged, part.merged, part)
        return self._difference(base, merged)

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


def assembled(
    reader: ReadsValues, patches: Sequence[Patch], shape: tuple[int, int]
) -> torch.Tensor:
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
