"""``W' = W + sum_i w_i s_i B_i A_i``: the adapters' factors side by side, PEFT's `cat`.

Exact, with the sum of all ranks; the same numbers as `sum`, but only for deltas that are products
of factors ``B_i (rows, r_i)``, ``A_i (r_i, columns)`` (and biases). No hyper-parameters.
"""

from __future__ import annotations

from remerge.adapters.deltas import Delta
from remerge.merging.methods.blocks import blocks_of, scaled
from remerge.merging.methods.method import Joint, Method, Parameters


class CatParameters(Parameters):
    """None."""


def _combine(joint: Joint, parameters: CatParameters) -> tuple[Delta, ...]:
    blocks, others = blocks_of(joint, "cat")
    return (*joint.replacements, *(step for block in blocks for step in scaled(block)), *others)


CAT = Method("cat", CatParameters, _combine)
