"""HRA (arXiv:2405.17484; PEFT tuners/hra): the inputs of a layer mirrored on a chain of planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.config import PeftConfig, Rank
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.rotation import in_order
from remerge.adapters.tuners.weights import fits, has_no_groups, has_rank, weight_of

_KINDS = ("Linear", "Conv2d")


class HraConfig(PeftConfig):
    """``apply_GS``: the planes are made orthogonal before use (Gram-Schmidt)."""

    r: Rank = 8
    apply_GS: bool = False


@dataclass(frozen=True)
class Mirrored:
    """``W @ (I - 2 u1 u1^T) @ (I - 2 u2 u2^T) ... = W - (W @ V) @ U^T``, Bischof and Van Loan's
    form of a chain of mirrors. ``planes`` is U side by side with V, ``(in, 2 r)``.
    """

    planes: Factor
    band: int = 1
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.planes,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        normals, weights = load(self.planes).chunk(2, dim=1)
        place = in_order(cols)
        block[:, place] -= (block[:, place] @ weights) @ normals.T


def _edits(context: Reading[HraConfig], layers: Sequence[Parts]) -> list[Edit]:
    found: list[Edit] = []
    rank = context.config.r
    for parts in layers:
        weight, name = weight_of(context, parts, _KINDS), parts.any_tensor
        if (
            weight is not None
            and has_no_groups(context, parts, weight)
            and has_rank(context, name, -1, rank)
            and fits(context, name, (weight.inputs, rank), weight)
        ):
            if context.config.apply_GS and rank > weight.inputs:
                problem = f"{rank} planes cannot be orthogonal in the {weight.inputs} inputs of"
                context.misfits.add(name, f"{problem} {weight.module}", "rank")
                continue
            planes = _planes(matrix(context.adapter, name), context.config.apply_GS)
            found.append(Edit(weight.parameter, (Mirrored(planes),)))
    return found


def _planes(stored: Factor, orthogonal: bool) -> Factor:
    inputs, rank = stored.shape

    def read() -> torch.Tensor:
        normals = stored.read().clone()
        weights = torch.empty_like(normals)
        for i in range(rank):
            normal = normals[:, i]
            if orthogonal:
                for j in range(i):
                    normal = normal - (normals[:, j] @ normal) * normals[:, j]
            normals[:, i] = normal / normal.square().sum().sqrt()
            before = weights[:, :i] @ (normals[:, :i].T @ normals[:, i])
            # PEFT takes planes made orthogonal for exactly so, and the mirrors for independent.
            weights[:, i] = 2 * (normals[:, i] if orthogonal else normals[:, i] - before)
        return torch.cat([normals, weights], dim=1)

    return made((inputs, 2 * rank), read)


HRA = Tuner("hra", HraConfig, part_keys("hra", "u"), _edits)
