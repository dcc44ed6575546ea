"""Consensus merging (Wang et al., arXiv:2405.07813): only what several adapters need.

With the multi-task delta ``D = sum_i w_i delta_i`` (rows, columns), adapter i needs a value where
``|delta_i| >= mask_lambda * |D - delta_i|`` (its TALL-mask); ``W' = W + lambda * D`` where at least
``agreement`` adapters do, else ``W``. Values that one adapter alone needs are dropped, and those
that none does.

Both sides are compared as float32. An adapter that leaves a tensor alone counts with a delta of
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from remerge.adapters.deltas import Delta, Prepared, Window
from remerge.errors import UsageError
from remerge.merging.combined import Combined, Deltas
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.weighted import weighted_sum
from remerge.merging.selection import keys_of


class ConsensusParameters(Parameters):
    """``agreement``: how many adapters must need a value. ``mask_lambda``: how large the rest of
    the multi-task delta may be beside an adapter's own, the larger the fewer; the paper tries 0.2
    to 0.6. ``lambda_``: factor of the result."""

    agreement: int = Field(default=2, ge=1)
    mask_lambda: float = Field(default=0.4, ge=0)
    lambda_: float = Field(default=1.0, alias="lambda")


@dataclass(frozen=True)
class Consensus:
    """The rule of one tensor; it needs no preparation."""

    weights: tuple[float, ...]
    parameters: ConsensusParameters
    name: str = "consensus"
    whole_rows: bool = False

    def prepare(self, deltas: Deltas) -> dict[str, torch.Tensor]:
        return {}

    def combine(self, deltas: torch.Tensor, window: Window, prepared: Prepared) -> torch.Tensor:
        asked = self.parameters
        total = weighted_sum(deltas, self.weights)
        needed = torch.zeros(total.shape, dtype=torch.int32, device=total.device)
        for delta in deltas:
            rest = (total - delta).abs_().mul_(asked.mask_lambda)
            needed += keys_of(delta.abs_()) >= keys_of(rest)
        return total.mul_(asked.lambda_).masked_fill_(needed < asked.agreement, 0.0)


def _combine(joint: Joint, parameters: ConsensusParameters) -> tuple[Delta, ...]:
    if parameters.agreement > len(joint.terms):
        raise UsageError(
            f"--agreement {parameters.agreement} is more than the {len(joint.terms)} adapters: "
            "nothing would be merged."
        )
    return (Combined(joint, Consensus(joint.weights, parameters)),)


CONSENSUS = Method("consensus", ConsensusParameters, _combine, least=2)
