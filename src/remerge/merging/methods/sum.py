"""``W' = W + sum_i w_i delta_i``: task arithmetic (Ilharco et al., arXiv:2212.04089), the default.

Every delta is (rows, columns) of the tensor; no hyper-parameters besides the weights, which need
not add up to one.
"""

from __future__ import annotations

from remerge.adapters.deltas import Delta
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.weighted import add_weighted


class SumParameters(Parameters):
    """None."""


def _combine(joint: Joint, parameters: SumParameters) -> tuple[Delta, ...]:
    return add_weighted("sum", joint, joint.weights)


SUM = Method("sum", SumParameters, _combine)
