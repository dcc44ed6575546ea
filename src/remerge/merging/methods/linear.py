"""``W' = W + sum_i w_i delta_i / sum_i w_i``: the weighted mean of the fine-tuned models.

Model soups (Wortsman et al., arXiv:2203.05482); mergekit's `linear` of the adapters merged one by
one. Deltas are (rows, columns). The weights of all adapters count, also of those that leave the
tensor alone.
"""

from __future__ import annotations

from remerge.adapters.deltas import Delta
from remerge.errors import UsageError
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.signs import rounding_of
from remerge.merging.methods.weighted import add_weighted


class LinearParameters(Parameters):
    """None."""


def _combine(joint: Joint, parameters: LinearParameters) -> tuple[Delta, ...]:
    total = sum(joint.weights)
    if abs(total) <= rounding_of(joint.weights):
        raise UsageError(
            "--method linear divides by the sum of the weights, which is zero.",
            hint="Use --method sum for weights that cancel out.",
        )
    return add_weighted("linear", joint, tuple(weight / total for weight in joint.weights))


LINEAR = Method("linear", LinearParameters, _combine)
