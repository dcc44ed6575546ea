"""DEFT and PaRa: what a weight does in a small subspace of its outputs is replaced, or removed.

``(I - Q V^T) W + s * Q R`` (PEFT deft/layer.py), where Q spans the columns of the trained P (r of
them) and V is Q, or with ``relu`` the positive part of P. Only ``V^T W (r, in)`` needs more of the
base than a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys, stored_shape
from remerge.adapters.tuners.gathered import projected
from remerge.adapters.tuners.weights import all_fit

# torch ships no types for it.
_LINALG: Any = torch.linalg


class DeftConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (deft/config.py)."""

    r: Rank = 8
    decomposition_method: Literal["relu", "qr"] = "relu"
    alpha: Number | None = None
    para: bool = False


Context = Reading[DeftConfig]


@dataclass(frozen=True)
class Injected:
    """``W + left (scale * R - right^T W)`` with ``left, right (out, r)`` made of ``basis`` (P).

    ``injection (r, in)`` is R, None for PaRa. ``transposed``: the parameter is ``(in, out)``.
    """

    basis: Factor
    injection: Factor | None
    method: Literal["relu", "qr"]
    scale: float
    transposed: bool
    band: int = 0
    gathers: bool = True

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.basis,) if self.injection is None else (self.basis, self.injection)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """``left (out, r)``, and ``inner (r, in)``, what is added in its terms."""
        basis = load(self.basis)
        # Q's signs matter to the injection: as PEFT does, it is Householder's QR of LAPACK.
        left = _LINALG.qr(basis)[0] if self.method == "qr" else basis
        right = left if self.method == "qr" else basis.relu()
        inner = -projected(base, right, self.transposed)
        if self.injection is not None:
            inner += load(self.injection) * self.scale
        return {"left": left.cpu(), "inner": inner.cpu()}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        out, into = (cols, rows) if self.transposed else (rows, cols)
        left = prepared["left"][span_of(out)].to(block.device)
        inner = prepared["inner"][:, span_of(into)].to(block.device)
        (block.T if self.transposed else block).addmm_(left, inner)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        edits += _edit(context, parts)
    return edits


def _edit(context: Context, parts: Parts) -> list[Edit]:
    config, dense = context.config, dense_layer(context, parts)
    wanted = ("P",) if config.para else ("P", "R")
    names = context.all_of(parts, *wanted, prefix="deft_")
    if dense is None or names is None or not context.only(parts, frozenset(wanted)):
        return []
    rank = min(config.r, dense.outputs)
    shapes = (dense.outputs, rank), (rank, dense.inputs)
    if not all_fit(context, dense, dict(zip(names, shapes, strict=False))):
        return []
    # An alpha of 0 counts as none.
    scale = config.alpha / rank if config.alpha else 1.0
    basis = matrix(context.adapter, names[0])
    injection = None if config.para else matrix(context.adapter, names[1])
    step = Injected(basis, injection, config.decomposition_method, scale, dense.transposed)
    return [Edit(dense.parameter, (step,))]


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    return FactorShapes(stored_shape(adapter, parts, "R"), stored_shape(adapter, parts, "P"))


DEFT = Tuner("deft", DeftConfig, part_keys("deft", "P", "R"), _edits, shapes=_shapes)
