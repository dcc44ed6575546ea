"""DoRA: ``m * (W + D) / norm(W + D)`` (arXiv:2402.09353; PEFT lora/dora.py and variants.py).

The norm is taken over a layer's inputs: along the rows of ``(out, in)`` weights and of
convolutions, along the columns of Conv1D's ``(in, out)``; an embedding ``(tokens, dim)`` is normed
over its tokens. There is no epsilon, and the norm is that of the base before any other adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from remerge.adapters.deltas import BaseMatrix, Delta, Factor, Load, LowRank, Prepared, Window
from remerge.adapters.deltas import overlap as meet
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.placing import Home, move_low_rank, spans_of, take_rows
from remerge.adapters.regions import Region
from remerge.errors import Unsupported

_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class Dora:
    """Adds ``product`` to a block of the tensor and rescales the block's rows or columns.

    ``by_column`` says that each column has one magnitude, else each row; ``magnitude`` is
    ``(rows or columns of the block, 1)``. The block must hold the normed axis whole.
    """

    product: LowRank
    magnitude: Factor
    by_column: bool
    shape: tuple[int, int]
    row: int = 0
    col: int = 0
    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (*self.product.factors, self.magnitude)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """``magnitude / norm`` in float64, one number per row or column of the block."""
        rows, cols = self.shape
        squares = torch.zeros(cols if self.by_column else rows, dtype=torch.float64)
        # Blocks of a fixed size: the order of summation must not depend on memory or threads.
        step = max(1, _BLOCK_ELEMENTS // base.shape[1])
        for first in range(0, rows, step):
            last = min(first + step, rows)
            window = Window(range(self.row + first, self.row + last), range(base.shape[1]))
            block = base.rows(window.rows)
            self.product.apply(block, window, load, {})
            block = block[:, self.col : self.col + cols].square()
            if self.by_column:
                squares += block.sum(0).cpu()
            else:
                squares[first:last] = block.sum(1).cpu()
        magnitude = load(self.magnitude).reshape(-1).cpu()
        return {"factor": magnitude / squares.sqrt()}

    def moved(self, region: Region, home: Home) -> tuple[Delta, ...]:
        """The step on the region's tensor; raises `Unsupported` where the normed axis is cut."""
        height, width = self.shape
        found = spans_of(region, self.row, height, self.col, width)
        product = move_low_rank(self.product, region)
        if found is None or product is None:
            return ()
        by_column = self.by_column != region.transposed
        kept, normed = (found[1], found[0]) if by_column else found
        if normed.sources != (height if self.by_column else width) or kept.gaps or normed.gaps:
            raise Unsupported(
                f"DoRA on {region.parameter}, of which {region.tensor} holds only a part.",
                why="Its norm is taken over values that lie in several tensors.",
                hint="Serve it as an adapter, or merge onto a base saved by transformers itself.",
            )
        shape = found[0].length, found[1].length
        magnitude = take_rows(self.magnitude, kept)
        return (Dora(product, magnitude, by_column, shape, found[0].start, found[1].start),)

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = meet(window.rows, self.row, self.shape[0])
        cols = meet(window.cols, self.col, self.shape[1])
        if rows is None or cols is None:
            return
        self.product.apply(tile, window, load, prepared)
        factor = prepared["factor"].to(tile.device)
        along = factor[cols[1]] if self.by_column else factor[rows[1]].unsqueeze(1)
        tile[rows[0], cols[0]] *= along


def dora_steps(
    context: Context, parts: Parts, product: LowRank, by_column: bool, outputs: int
) -> list[Delta]:
    """The DoRA step of a layer with this low-rank step; none, with a misfit, where the magnitudes
    are missing or too many."""
    name = parts.tensors.get("magnitude_vector")
    if name is None:
        context.misfits.add(
            parts.any_tensor, "use_dora is set but its lora_magnitude_vector is missing", "unpaired"
        )
        return []
    if math.prod(context.stored(name)) != outputs:
        context.misfits.add(
            name, f"has shape {context.stored(name)}, the layer has {outputs} outputs", "shape"
        )
        return []
    magnitude = matrix(context.adapter, name, (outputs, 1))
    shape = product.left.shape[0], product.right.shape[1]
    return [Dora(product, magnitude, by_column, shape)]
