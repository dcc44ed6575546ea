"""NuSLERP: the point between two deltas on the sphere, their norms with it.

``W' = W + (sin((1 - t) a) delta_1 + sin(t a) delta_2) / sin(a)`` with the angle ``a`` between the
deltas (rows, columns) and ``t = w_2 / (w_1 + w_2)``, a half where the weights cancel out; ``(1 - t)
delta_1 + t delta_2`` where they lie on one line.

The numbers are mergekit's `nuslerp` with a base: of tensors as a whole, or with ``row_wise`` of
every row (there `nuslerp_flatten: false`; its own `nuslerp_row_wise` goes along columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.angles import norms_of, of_rows, products, spherical
from remerge.merging.methods.method import Joint, Method, Parameters

# Smaller norms count as this one, and smaller sums of weights as zero (mergekit's bounds).
_SMALLEST = 1e-7
_NO_WEIGHT = 1e-6
# Squared sines below this are those of a line: no rounding error decides.
_LINE = 2.0**-40


class NuslerpParameters(Parameters):
    """``row_wise``: interpolate every row by itself, not a tensor as a whole."""

    row_wise: bool = False


@dataclass(frozen=True)
class Nuslerp:
    """The rule of one tensor; its preparation is the share of each delta, (1, 2) or (rows, 2)."""

    t: float
    by_row: bool
    name: str = "nuslerp"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        rows = deltas.shape[1] if self.by_row else None
        found = products((values for _, values in deltas.blocks()), rows)
        norms = norms_of(found).clamp(min=_SMALLEST)
        cosine = (found[:, 0, 1] / (norms[:, 0] * norms[:, 1])).clamp(-1, 1)
        return {"shares": spherical(self.t, cosine, 1 - cosine.square() <= _LINE)}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        for number, delta in enumerate(deltas):
            delta *= of_rows(prepared["shares"][:, number], window, delta.device)
        return deltas[0] + deltas[1]


def _combine(joint: Joint, parameters: NuslerpParameters) -> tuple[Delta, ...]:
    first, second = joint.weights
    total = first + second
    t = 0.5 if abs(total) < _NO_WEIGHT else second / total
    # A vector, which is seen as a column, is one row.
    by_row = parameters.row_wise and not joint.is_vector
    return (Combined(joint, Nuslerp(t, by_row)),)


NUSLERP = Method("nuslerp", NuslerpParameters, _combine, least=2, most=2)
