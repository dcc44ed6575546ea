"""C3A: a change of circulant blocks, each made of one trained vector (arXiv:2407.19342).

``W[m*b + t, n*b + s] += kernel[m, n, (s - t) mod b] / in``: what PEFT computes with Fourier
transforms (c3a/utils.py, get_circulant_fast; c3a/layer.py), read off the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys
from remerge.adapters.tuners.weights import fits


@dataclass(frozen=True)
class Circulant:
    """``kernel (out / b, in)`` holds the first rows of the blocks of ``size`` by ``size``."""

    kernel: Factor
    size: int
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.kernel,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        kernel, size = load(self.kernel), self.size
        row = torch.arange(kernel.shape[0] * size)[span_of(rows)].unsqueeze(1)
        col = torch.arange(kernel.shape[1])[span_of(cols)]
        at = col - col % size + (col - row) % size
        block += kernel[(row // size).to(block.device), at.to(block.device)] / kernel.shape[1]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        names = context.all_of(parts, "kernel", prefix="c3a_")
        if dense is None or names is None:
            continue
        stored = context.stored(names[0])
        size = stored[-1] if stored else 1
        if dense.outputs % size or dense.inputs % size:
            found = f"has shape {stored}, blocks of {size}"
            problem = f"{found}, into which {dense.outputs} x {dense.inputs} does not divide"
            context.misfits.add(names[0], problem, "shape")
            continue
        rows, cols = dense.outputs // size, dense.inputs // size
        if fits(context, names[0], (rows, cols, size), dense):
            kernel = matrix(context.adapter, names[0], (rows, dense.inputs))
            edits.append(Edit(dense.parameter, (Circulant(kernel, size),)))
    return edits


C3A = Tuner("c3a", PeftConfig, part_keys("c3a", "kernel"), _edits)
