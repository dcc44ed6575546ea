"""Core Space merging (Panariello et al., arXiv:2509.17786): adapters in the space they share.

``U (m, k)`` are the left singular vectors of all ``B_i`` side by side, ``V (k', n)`` the right ones
of all ``A_i`` over each other; they hold every delta whole, as ``M_i = U.T (s_i B_i A_i) V.T``. The
small ``M_i (k, k')`` are merged ``within`` that space, and ``W' = W + U M V``.

As in the authors' code, ``ties`` keeps the ``int(density * k * k') + 1`` largest magnitudes of
every ``M_i``, elects signs on them, and takes the mean of ``w_i M_i`` over the adapters that agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from remerge.adapters.deltas import Delta
from remerge.merging.methods.blocks import Block, blocks_of, scaled
from remerge.merging.methods.disjoint import kept_by, mean_of_agreeing
from remerge.merging.methods.factors import Core, Cored, decomposed, task_singular_vectors
from remerge.merging.methods.method import Joint, Method, Parameters, PerAdapter, Shares


class CoreSpaceParameters(Parameters):
    """``within``: how the core matrices are merged, by sum (the plain sum of the deltas), ties or
    tsv. ``density``: share of each core matrix's values that stays, for ties."""

    within: Literal["sum", "ties", "tsv"] = "tsv"
    density: Shares = (1.0,)


@dataclass(frozen=True)
class CoreSpace:
    """The core of one tensor; ``density`` by adapter, where ``within`` is ties."""

    within: str
    density: PerAdapter
    name: str = "core_space"

    def rank(self, block: Block) -> int:
        return block.rank

    def core(self, block: Block, left: torch.Tensor, right: torch.Tensor) -> Core:
        # L = (Q_L P) (S X): the vectors sought are Q_L P, and P.T T_L are the factors seen by them.
        # S X is the same, but for errors as large as the largest factor's: where an adapter's are
        # zero or much smaller, they would pass for a delta.
        vectors, sizes, basis = decomposed(left)
        other_vectors, other_sizes, other_basis = decomposed(right)
        seen = (vectors.T @ left) * block.scales(weighted=False)
        other_seen = other_vectors.T @ right
        cores = [seen[:, at] @ other_seen[:, at].T for at, _ in block.adapters]
        merged = self._merged(cores, [weight for _, weight in block.adapters], block)
        return ((basis.T / sizes) @ merged @ (other_basis / other_sizes[:, None]),)

    def _merged(
        self, cores: Sequence[torch.Tensor], weights: Sequence[float], block: Block
    ) -> torch.Tensor:
        if self.within == "tsv":
            return task_singular_vectors(cores, weights, max(1, min(cores[0].shape) // len(cores)))
        stack = torch.stack(tuple(cores))
        numbers = dict.fromkeys(part.adapter for part in block.parts)
        for core, adapter in zip(stack, numbers, strict=True):
            trim(core, self.density[adapter])
        return mean_of_agreeing(stack, weights)


def trim(values: torch.Tensor, density: float) -> None:
    """Set all but the largest magnitudes to zero; those equal to the smallest kept stay too."""
    count = kept_by(density, values.numel())
    if count < values.numel():
        sizes = values.abs()
        smallest = sizes.flatten().kthvalue(values.numel() - count + 1).values
        values[sizes < smallest] = 0.0


def _combine(joint: Joint, parameters: CoreSpaceParameters) -> tuple[Delta, ...]:
    blocks, others = blocks_of(joint, "core_space")
    steps: list[Delta] = []
    for block in blocks:
        if parameters.within == "sum":
            steps += scaled(block)
        else:
            steps.append(Cored(block, CoreSpace(parameters.within, parameters.density)))
    return (*joint.replacements, *steps, *others)


CORE_SPACE = Method("core_space", CoreSpaceParameters, _combine)
