"""Model Stock (Jang et al., arXiv:2403.19522): how far to go from the base to the mean.

``W' = W + t * mean_i delta_i`` with ``t = n c / (1 + (n - 1) c)``, where ``c`` is the mean cosine
between the n deltas (rows, columns) of a tensor, or of a row. There are no weights.

The numbers are mergekit's: products of norms below 1e-6 count as 1e-6, and where ``1 + (n - 1) c``
is below 1e-6 the base stays. An adapter that leaves a tensor alone counts with a delta of zero. A
row of a convolution is a filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.angles import norms_of, of_rows, products
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.signs import added

_SMALLEST = 1e-6


class ModelStockParameters(Parameters):
    """``filter_wise``: measure angles row by row, not of a tensor as a whole."""

    filter_wise: bool = False


@dataclass(frozen=True)
class ModelStock:
    """The rule of one tensor; its preparation is ``t``, (1,) or (rows,)."""

    by_row: bool
    name: str = "model_stock"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        rows = deltas.shape[1] if self.by_row else None
        found = products((values for _, values in deltas.blocks()), rows)
        norms = norms_of(found)
        cosines = [
            found[:, i, j] / (norms[:, i] * norms[:, j]).clamp(min=_SMALLEST)
            for i, j in combinations(range(found.shape[1]), 2)
        ]
        cosine = torch.stack([cosine.clamp(-1, 1) for cosine in cosines]).mean(0)
        count = found.shape[1]
        divisor = 1 + (count - 1) * cosine
        single = divisor.abs() < _SMALLEST
        t = torch.where(single, 0.0, count * cosine / torch.where(single, 1.0, divisor))
        return {"t": t}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        t = of_rows(prepared["t"], window, deltas.device)
        return added(deltas).mul_(t / len(deltas))


def _combine(joint: Joint, parameters: ModelStockParameters) -> tuple[Delta, ...]:
    # A vector, which is seen as a column, is one filter.
    by_row = parameters.filter_wise and not joint.is_vector
    return (Combined(joint, ModelStock(by_row)),)


MODEL_STOCK = Method("model_stock", ModelStockParameters, _combine, least=2, weighted=False)
