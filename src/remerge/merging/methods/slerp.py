"""SLERP: the point between two merged tensors on the sphere (Shoemake 1985).

``W' = (sin((1 - t) a) W_1 + sin(t a) W_2) / sin(a)`` with ``W_i = W + delta_i`` (rows, columns) and
the angle ``a`` between them as vectors; ``(1 - t) W_1 + t W_2`` where its cosine is over 0.9995 or
below -0.9995, as it is of nearly all adapters. There are no weights.

The numbers are mergekit's `slerp` of the merged models, the first of them its base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.angles import norms_of, products, spherical
from remerge.merging.methods.method import Joint, Method, Parameters

# mergekit's bounds: norms that count as 1, and cosines of vectors on one line.
_NO_NORM = 1e-8
_LINE = 0.9995


class SlerpParameters(Parameters):
    """``t``: where between the first adapter's result (0) and the second's (1)."""

    t: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class Slerp:
    """The rule of one tensor; its preparation is how much of each delta and, beyond once, of the
    base's values is in the result: (3,)."""

    t: float
    name: str = "slerp"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        found = products(_merged(deltas))
        norms = norms_of(found)
        norms = torch.where(norms > _NO_NORM, norms, 1.0)
        cosine = (found[:, 0, 1] / (norms[:, 0] * norms[:, 1])).clamp(-1, 1)
        line = cosine.abs() > _LINE
        first, second = spherical(self.t, cosine, line)[0]
        base = torch.where(line[0], 0.0, first + second - 1)
        return {"shares": torch.stack([first, second, base])}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        first, second, _ = prepared["shares"]
        return deltas[0].mul_(float(first)).add_(deltas[1], alpha=float(second))


@dataclass(frozen=True, eq=False)
class Interpolated(Combined):
    """As its parent, where the base's values count with a factor too."""

    def change(
        self, tile: torch.Tensor, deltas: torch.Tensor, window: Window, prepared: Prepared
    ) -> torch.Tensor:
        change = super().change(tile, deltas, window, prepared)
        more = float(prepared["shares"][2])
        return change.add_(tile, alpha=more) if more else change


def _merged(deltas: Deltas) -> Iterator[torch.Tensor]:
    for window, values in deltas.blocks():
        yield values.add_(deltas.start(window))


def _combine(joint: Joint, parameters: SlerpParameters) -> tuple[Delta, ...]:
    return (Interpolated(joint, Slerp(parameters.t)),)


SLERP = Method("slerp", SlerpParameters, _combine, least=2, most=2, weighted=False)
