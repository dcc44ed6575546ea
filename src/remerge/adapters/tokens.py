"""Trained rows of an embedding (PEFT tuners/trainable_tokens/layer.py, utils/other.py).

The rows replace those of the base; no difference is added.
"""

from __future__ import annotations

from collections.abc import Sequence

from remerge.adapters.deltas import ReplacedRows
from remerge.adapters.edits import Context, Edit
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Keys


def token_edits(context: Context, keys: Keys) -> list[Edit]:
    """One edit for every embedding (or head) with trained rows ``(tokens, dim)``."""
    edits: list[Edit] = []
    for module, key in keys.tokens.items():
        indices = _indices(context, module, key)
        edits += [] if indices is None else trained_rows(context, module, key, indices)
    return edits


def trained_rows(
    context: Context, module: str, key: str, indices: tuple[int, ...]
) -> Sequence[Edit]:
    """The edit that puts an adapter's tensor in these rows of a module's weight; none, with a
    misfit, where it does not fit."""
    parameter = f"{module}.weight"
    shape = context.shape(parameter)
    if shape is None:
        context.misfits.add(key, f"the model has no parameter {parameter}", "missing")
    elif _fits(context, key, indices, shape):
        return (Edit(parameter, (ReplacedRows(matrix(context.adapter, key), indices),)),)
    return ()


def _indices(context: Context, module: str, key: str) -> tuple[int, ...] | None:
    told = context.config.trainable_token_indices
    if isinstance(told, dict):
        # PEFT wraps every module whose path ends so (utils/other.py, _set_trainable).
        matching = {tuple(rows) for name, rows in told.items() if module.endswith(name)}
        if len(matching) == 1:
            return matching.pop()
    elif told is not None:
        return tuple(told)
    context.misfits.add(
        key, f"trainable_token_indices does not say which rows of {module} it holds", "unknown"
    )
    return None


def _fits(context: Context, key: str, indices: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    stored = context.stored(key)
    if len(shape) != 2 or stored != (len(indices), shape[1]):
        context.misfits.add(
            key, f"has shape {stored} for {len(indices)} rows of an embedding {shape}", "shape"
        )
    elif max(indices, default=0) >= shape[0]:
        context.misfits.add(
            key, f"holds row {max(indices)} of an embedding with {shape[0]} rows", "vocabulary"
        )
    elif len(set(indices)) < len(indices):
        context.misfits.add(key, "the configuration names a row twice", "unknown")
    else:
        return True
    return False
