"""LayerNorm tuning (arXiv:2312.11420; PEFT tuners/ln_tuning): trained copies of whole layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import Replaced
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner

_KEY = re.compile(r"(?P<module>.+)\.ln_tuning_layers\.(?P<rest>.+)")
# A batch norm's count of training steps, which nothing reads afterwards.
_COUNTER = "num_batches_tracked"


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    if found is None or found["rest"].endswith(_COUNTER):
        return None
    return found["module"], found["rest"]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    found: list[Edit] = []
    for parts in layers:
        for rest, name in parts.tensors.items():
            parameter = _parameter(context, parts.module, rest)
            shape, stored = context.shape(parameter), context.stored(name)
            if shape is None:
                context.misfits.add(name, f"the model has no parameter {parameter}", "missing")
            elif shape != stored:
                problem = f"has shape {stored}, but {parameter} has {shape}"
                context.misfits.add(name, problem, "shape")
            elif math.prod(stored):
                values = matrix(context.adapter, name, context.view(parameter, shape))
                found.append(Edit(parameter, (Replaced(values),)))
    return found


def _parameter(context: Context, module: str, rest: str) -> str:
    """The parameter's name; the adapter's own may stand before it."""
    named = f"{module}.{rest.partition('.')[2]}"
    whole = f"{module}.{rest}"
    return named if context.shape(whole) is None and context.shape(named) is not None else whole


LN_TUNING = Tuner("ln_tuning", PeftConfig, _layer_key, _edits)
