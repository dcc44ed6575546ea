"""LoKr (LyCORIS; PEFT tuners/lokr): ``W + s * kron(w1, w2)``, either side possibly factored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix, turned
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.lycoris import KINDS, LycorisConfig, core_times
from remerge.adapters.tuners.weights import Weight, fits, has_rank, weight_of

Context = Reading[LycorisConfig]


@dataclass(frozen=True)
class KroneckerProduct:
    """Adds ``scale * kron(left (a, c), right (b, d))`` to a parameter of ``(a*b, c*d)``.

    ``kernel`` is 0, or the kernel of a Conv1d whose right side is stored as ``(b, d, k)``: torch
    then puts the axes of ``left`` on the last two, and PEFT trains and merges that (make_kron in
    lokr/layer.py): the matrix is ``(b, a*d * c*k)`` in the order of memory.
    """

    left: Factor
    right: Factor
    scale: float
    kernel: int = 0
    band: int = 0
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.left, self.right)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        left, right = load(self.left), load(self.right)
        down = torch.as_tensor(np.asarray(rows), device=block.device).unsqueeze(1)
        across = torch.as_tensor(np.asarray(cols), device=block.device)
        high, wide = right.shape
        if self.kernel:
            flat = down * (left.shape[1] * wide) + across
            length = left.shape[1] * self.kernel
            plane, depth = flat // length, flat % length
            places = wide // self.kernel
            middle = plane % (left.shape[0] * places)
            first = left[middle // places, depth // self.kernel]
            second = right[
                plane // (left.shape[0] * places),
                middle % places * self.kernel + depth % self.kernel,
            ]
        else:
            first = left[down // high, across // wide]
            second = right[down % high, across % wide]
        block.add_(first * second, alpha=self.scale)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    found: list[Edit] = []
    for parts in layers:
        weight = weight_of(context, parts, KINDS)
        step = None if weight is None else _step(context, parts, weight)
        if weight is not None and step is not None:
            found.append(Edit(weight.parameter, (step,)))
    return found


def _step(context: Context, parts: Parts, weight: Weight) -> KroneckerProduct | None:
    left = _side(context, parts, weight, "w1", None)
    right = _side(context, parts, weight, "w2", parts.tensors.get("t2"))
    if left is None or right is None:
        return None
    made_shape = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    if made_shape != weight.view:
        problem = (
            f"its factors {left.shape} and {right.shape} make {made_shape}, but "
            f"{weight.parameter} has shape {weight.shape}"
        )
        context.misfits.add(parts.any_tensor, problem, "shape")
        return None
    whole = parts.tensors.get("w2")
    stacked = whole is not None and len(context.stored(whole)) == 3
    scale = context.config.scale(parts.module)
    return KroneckerProduct(left, right, scale, weight.kernel if stacked else 0)


def _side(
    context: Context, parts: Parts, weight: Weight, side: str, core: str | None
) -> Factor | None:
    """One factor of the product as a matrix, kernel places along its columns."""
    whole = parts.tensors.get(side)
    pieces = {side, f"{side}_a", f"{side}_b", *(["t2"] if core is not None else [])}
    present = pieces & set(parts.tensors)
    if whole is not None:
        if present != {side}:
            name = parts.tensors[sorted(present - {side})[0]]
            context.misfits.add(name, f"is a second form of {whole}", "unknown")
            return None
        return _whole(context, whole, weight)
    names = context.all_of(parts, f"{side}_a", f"{side}_b", prefix="lokr_")
    if names is None:
        return None
    rank = context.config.rank(parts.module)
    axes = (1, 0) if core is None else (0, 0)
    if not all(has_rank(context, n, axis, rank) for n, axis in zip(names, axes, strict=True)):
        return None
    if any(len(context.stored(name)) != 2 for name in names):
        shapes = " and ".join(str(context.stored(name)) for name in names)
        context.misfits.add(names[0], f"has with its partner the shapes {shapes}", "shape")
        return None
    a, b = (matrix(context.adapter, name) for name in names)
    if core is None:
        return made((a.shape[0], b.shape[1]), lambda: a.read() @ b.read())
    if not fits(context, core, (rank, rank, *(*weight.shape[2:], 1)[:2]), weight):
        return None
    outer, inner = turned(a), core_times(matrix(context.adapter, core), b, weight.kernel)
    return made((outer.shape[0], inner.shape[1]), lambda: outer.read() @ inner.read())


def _whole(context: Context, name: str, weight: Weight) -> Factor | None:
    """A factor stored as a matrix, or with the weight's kernel."""
    shape = context.stored(name)
    if len(shape) == 2 or (len(shape) > 2 and shape[2:] == weight.shape[2:]):
        return matrix(context.adapter, name)
    problem = f"has shape {shape}, no factor of {weight.parameter} with shape {weight.shape}"
    context.misfits.add(name, problem, "shape")
    return None


LOKR = Tuner(
    "lokr",
    LycorisConfig,
    part_keys("lokr", "w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"),
    _edits,
)
