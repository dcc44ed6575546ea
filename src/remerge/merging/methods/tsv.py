"""TSV-Merge: task singular vectors without interference (Gargiulo et al., arXiv:2412.00081).

Of every delta ``U_i S_i V_i.T`` (m, n) the ``min(m, n) / T`` largest singular values stay, T being
the number of adapters that change the layer: all of an adapter's few, unless the matrix is small.
Their vectors, those of all adapters side by side, are replaced by the nearest orthonormal ones
(Procrustes, from the singular value decomposition of each side), and
``W' = W + U_perp diag(w_i S_i) V_perp.T``. Values of zero, whose vectors are arbitrary, are left
out. Found from the factors alone; no hyper-parameters besides the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Delta
from remerge.merging.methods.blocks import Block, blocks_of
from remerge.merging.methods.factors import Core, Cored, inverse, task_singular_vectors
from remerge.merging.methods.method import Joint, Method, Parameters


class TsvParameters(Parameters):
    """None."""


@dataclass(frozen=True)
class TaskSingularVectors:
    """The core of the orthogonalised sum."""

    name: str = "tsv"

    def rank(self, block: Block) -> int:
        return block.rank

    def core(self, block: Block, left: torch.Tensor, right: torch.Tensor) -> Core:
        scales = block.scales(weighted=False)
        deltas = [(left[:, at] * scales[at]) @ right[:, at].T for at, _ in block.adapters]
        weights = [weight for _, weight in block.adapters]
        kept = max(1, min(block.height, block.width) // len(weights))
        merged = task_singular_vectors(deltas, weights, kept)
        return (inverse(left) @ merged @ inverse(right).T,)


def _combine(joint: Joint, parameters: TsvParameters) -> tuple[Delta, ...]:
    blocks, others = blocks_of(joint, "tsv")
    steps = (Cored(block, TaskSingularVectors()) for block in blocks)
    return (*joint.replacements, *steps, *others)


TSV = Method("tsv", TsvParameters, _combine)
