"""LoHa (arXiv:2108.06098; PEFT tuners/loha): ``W + s * (A1 @ B1) * (A2 @ B2)``, elementwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.blocks import span_of
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import matrix, turned
from remerge.adapters.facts import AdapterFacts, FactorShapes
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.lycoris import KINDS, LycorisConfig, core_times
from remerge.adapters.tuners.weights import Weight, fits, linear_shapes, weight_of

Context = Reading[LycorisConfig]
_SIDES = ("1", "2")


@dataclass(frozen=True)
class HadamardProduct:
    """Adds ``scale`` times the elementwise product of ``left (out, r) @ right (r, in)`` pairs."""

    products: tuple[tuple[Factor, Factor], ...]
    scale: float
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for pair in self.products for factor in pair)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        down, across = span_of(rows), span_of(cols)
        change = torch.full_like(block, self.scale)
        for left, right in self.products:
            change *= load(left)[down] @ load(right)[:, across]
        block += change


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    found: list[Edit] = []
    for parts in layers:
        weight = weight_of(context, parts, KINDS)
        pairs = [] if weight is None else [_product(context, parts, weight, s) for s in _SIDES]
        products = tuple(pair for pair in pairs if pair is not None)
        if weight is not None and len(products) == len(_SIDES):
            step = HadamardProduct(products, context.config.scale(parts.module))
            found.append(Edit(weight.parameter, (step,)))
    return found


def _product(
    context: Context, parts: Parts, weight: Weight, side: str
) -> tuple[Factor, Factor] | None:
    """One product: ``A (out, r)`` and ``B (r, in * kernel)`` or, around a core ``(r, r, k, l)``,
    ``A (r, out)`` and ``B (r, in)``."""
    names = context.all_of(parts, f"w{side}_a", f"w{side}_b", prefix="hada_")
    if names is None:
        return None
    rank, core = context.config.rank(parts.module), parts.tensors.get(f"t{side}")
    if core is None:
        wanted = (weight.outputs, rank), (rank, weight.inputs)
    else:
        wanted = (rank, weight.outputs), (rank, weight.inputs // weight.kernel)
        kernel = (*weight.shape[2:], 1)[:2]
        if not fits(context, core, (rank, rank, *kernel), weight):
            return None
    if not all(fits(context, n, shape, weight) for n, shape in zip(names, wanted, strict=True)):
        return None
    left, right = (matrix(context.adapter, name) for name in names)
    if core is None:
        return left, right
    return turned(left), core_times(matrix(context.adapter, core), right, weight.kernel)


def _shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    if "t1" in parts.tensors:
        return FactorShapes(None, None)
    return linear_shapes(adapter, parts.tensors.get("w1_a"), parts.tensors.get("w1_b"))


LOHA = Tuner(
    "loha",
    LycorisConfig,
    part_keys("hada", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"),
    _edits,
    shapes=_shapes,
)
