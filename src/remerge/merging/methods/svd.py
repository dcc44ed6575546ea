"""The matrix of rank ``svd_rank`` nearest to ``sum_i w_i delta_i``: PEFT's `svd`.

By Eckart and Young it is the truncated singular value decomposition; it is found from the factors
``L (m, K)`` and ``R (K, n)`` of the sum, for each layer by itself. PEFT multiplies its result by
``sqrt(rank)`` where the first adapter uses rank-stabilised LoRA (its issue 3761); this does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta
from remerge.merging.methods.blocks import Block, blocks_of, scaled
from remerge.merging.methods.factors import Core, Cored, decomposed, inverse, padded
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.scope import Scope


class SvdParameters(Parameters):
    """``svd_rank``: rank of the combination of each layer; None: the largest rank of any adapter in
    any layer, as in PEFT."""

    svd_rank: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The core of the nearest matrix of a rank, or of ``scope``'s largest where None is asked."""

    asked: int | None
    scope: Scope
    name: str = "svd"

    def rank(self, block: Block) -> int:
        asked = self.asked or max(self.scope.largest_rank, block.largest)
        return min(asked, block.rank, block.height, block.width)

    def core(self, block: Block, left: torch.Tensor, right: torch.Tensor) -> Core:
        scales = block.scales()
        vectors, _, _ = decomposed((left * scales) @ right.T)
        vectors = vectors[:, : self.rank(block)]
        # L @ C = Q_L U U.T Q_L.T L: the sum seen from its leading directions, without R's inverse.
        core = inverse(left) @ vectors, (vectors.T @ left) * scales
        return padded(*core, self.rank(block))


def _combine(joint: Joint, parameters: SvdParameters) -> tuple[Delta, ...]:
    blocks, others = blocks_of(joint, "svd")
    steps: list[Delta] = []
    for block in blocks:
        rank = parameters.svd_rank or block.largest
        if min(block.rank, block.height, block.width) <= rank:
            steps += scaled(block)
        else:
            steps.append(Cored(block, Nearest(parameters.svd_rank, joint.scope)))
    return (*joint.replacements, *steps, *others)


SVD = Method("svd", SvdParameters, _combine)
