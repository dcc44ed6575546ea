"""Parameters that an adapter brings whole: modules_to_save, biases, saved embeddings.

PEFT writes them beside the factors under the names of the model (utils/save_and_load.py). A module
to save is a trained copy of the module (utils/other.py, ModulesToSaveWrapper); everything else is
loaded into the base's own parameter before anything is merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import Replaced
from remerge.adapters.edits import Context, Whole
from remerge.adapters.factors import matrix
from remerge.adapters.keys import Keys
from remerge.adapters.vocabulary import counts_tokens, vocabulary_size

# Modules that PEFT adds to modules_to_save for a task (peft_model.py).
TASK_HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("score", "classifier"),
    "TOKEN_CLS": ("score", "classifier"),
    "QUESTION_ANS": ("qa_outputs",),
}


def trained_modules(config: PeftConfig) -> tuple[str, ...]:
    """Endings of the paths of modules that were trained as copies."""
    heads = TASK_HEADS.get(config.task_type or "", ())
    return (*(config.modules_to_save or ()), *heads)


def wholes(context: Context, keys: Keys) -> dict[str, Whole]:
    """The parameters that the adapter brings whole, by name; misfits for those that fit nothing."""
    found: dict[str, Whole] = {}
    for parameter, key in keys.parameters.items():
        if _is_shape_right(context, parameter, key):
            shape = context.stored(key)
            rows = shape[0] if len(shape) > 1 else math.prod(shape)
            view = context.view(parameter, shape)
            values = matrix(context.adapter, key, view)
            if rows == 0 or math.prod(shape) == 0:
                context.misfits.add(key, f"is empty, of shape {shape}", "empty")
                continue
            alone = is_trained_copy(context.config, parameter)
            found[parameter] = Whole(parameter, shape, Replaced(values), alone)
    return found


def unlisted(context: Context, keys: Keys) -> tuple[str, ...]:
    """Whole parameters that the configuration does not mention: neither a module to save, nor a
    bias, nor an embedding. PEFT loads them all the same."""
    return tuple(
        parameter
        for parameter in keys.parameters
        if not is_trained_copy(context.config, parameter)
        and not (context.config.bias != "none" and parameter.endswith(".bias"))
        and parameter not in keys.wrapped
        and not counts_tokens(parameter)
    )


def is_trained_copy(config: PeftConfig, parameter: str) -> bool:
    """Whether the parameter lies in a module to save, by PEFT's rule for the module's path
    (utils/other.py, _set_trainable: the end of the string)."""
    modules = parameter.split(".")[:-1]
    paths = [".".join(modules[: count + 1]) for count in range(len(modules))]
    endings = trained_modules(config)
    return any(path.endswith(ending) for path in paths for ending in endings)


def _is_shape_right(context: Context, parameter: str, key: str) -> bool:
    shape, known = context.stored(key), context.names.shape(parameter)
    if known is None:
        context.misfits.add(key, f"the model has no parameter {parameter}", "missing")
        return False
    if shape == known or _is_resized(context, parameter, shape, known):
        return True
    rows_only = len(shape) == len(known) and shape[1:] == known[1:]
    context.misfits.add(
        key,
        f"has shape {shape}, but {parameter} has {known}",
        "vocabulary" if rows_only else "shape",
    )
    return False


def _is_resized(
    context: Context, parameter: str, shape: tuple[int, ...], known: tuple[int, ...]
) -> bool:
    """Whether another number of rows is what training asked for: new tokens, other labels."""
    if len(shape) != len(known) or shape[1:] != known[1:]:
        return False
    heads = TASK_HEADS.get(context.config.task_type or "", ())
    is_head = any(part in heads for part in parameter.split(".")[:-1])
    return is_head or known[0] == vocabulary_size(context.base.config, known[0])
