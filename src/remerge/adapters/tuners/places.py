"""Trained numbers at a few places of a matrix, which a seed or the adapter names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from remerge.adapters.blocks import span_of
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.regions import Index

# What torch's generators take.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]

# From here on torch shuffles in another way, which takes the whole permutation to know its start.
MOST_PLACES = (2**32 - 1) // 20


def shuffled(count: int, places: int, seed: int) -> torch.Tensor:
    """The first numbers of ``torch.randperm(places)`` from this seed, without the others.

    int64 ``(count,)``; ``places`` must be under `MOST_PLACES`. torch swaps from the front, with one
    32-bit number of the Mersenne twister each (ATen/native/TensorFactories.cpp, randperm_cpu).
    """
    bits: Any = np.random.MT19937()
    bits.state = np.random.RandomState(seed % 2**32).get_state(legacy=False)
    drawn = np.asarray(bits.random_raw(count), dtype=np.int64)
    moved: dict[int, int] = {}
    found: list[int] = []
    for first in range(count):
        other = first + int(drawn[first]) % (places - first)
        found.append(moved.get(other, other))
        moved[other] = moved.get(first, first)
    return torch.tensor(found, dtype=torch.int64)


def local(index: Index, size: int) -> torch.Tensor:
    """Where each of ``size`` positions lies in the index, -1 where it does not."""
    found = torch.full((size,), -1, dtype=torch.int64)
    found[span_of(index)] = torch.arange(len(index))
    return found


@dataclass(frozen=True)
class Scattered:
    """``W.flat[places] += scale * values``: ``values (k, 1)`` at int64 ``places (k,)`` of a matrix
    with this shape."""

    values: Factor
    places: Callable[[], torch.Tensor]
    shape: tuple[int, int]
    scale: float = 1.0
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """The places in order, and which value each has: the same place may have several."""
        places, order = self.places().sort(stable=True)
        return {"places": places, "order": order}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        held, width = np.asarray(rows), self.shape[1]
        # Only the places between the block's first and last row can be in it.
        ends = torch.tensor([int(held.min()) * width, (int(held.max()) + 1) * width])
        first, last = (int(end) for end in torch.searchsorted(prepared["places"], ends))
        places, order = (prepared[name][first:last] for name in ("places", "order"))
        down = local(rows, self.shape[0])[places // width]
        across = local(cols, width)[places % width]
        here = (down >= 0) & (across >= 0)
        values = load(self.values)[:, 0][order[here].to(block.device)] * self.scale
        at = (down[here].to(block.device), across[here].to(block.device))
        block.index_put_(at, values, accumulate=True)
