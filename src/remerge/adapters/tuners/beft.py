"""BEFT: a trained vector added to a layer's bias (PEFT beft/layer.py)."""

from __future__ import annotations

from collections.abc import Sequence

from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import Added
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, part_keys
from remerge.adapters.tuners.weights import fits
from remerge.errors import Unsupported


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    edits: list[Edit] = []
    for parts in layers:
        dense = dense_layer(context, parts, conv1d=False)
        names = context.all_of(parts, "bias", prefix="beft_")
        if dense is None or names is None:
            continue
        if not fits(context, names[0], (1, dense.outputs), dense):
            continue
        if context.shape(dense.bias) is None:
            raise Unsupported(
                f"The adapter trained a bias for {dense.module}, which has none in this model.",
                why="The model's class would not read one from the merged checkpoint.",
                hint="Serve it as an adapter on its base.",
            )
        values = matrix(context.adapter, names[0], (dense.outputs, 1))
        edits.append(Edit(dense.bias, (Added(values, 1.0),)))
    return edits


BEFT = Tuner("beft", PeftConfig, part_keys("beft", "bias"), _edits)
