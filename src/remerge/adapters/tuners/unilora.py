"""Uni-LoRA: every entry of every factor taken from one trained vector (arXiv:2506.00799).

``W + B A`` with ``A = theta[indices] * scales`` and B likewise (PEFT unilora/layer.py). Indices and
scales are stored, or dealt again: a seeded shuffle over the factors of all adapted layers in the
model's order (unilora/model.py, _assign_unilora_indices_and_scales).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from remerge.adapters.config import Rank
from remerge.adapters.deltas import Factor
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made
from remerge.adapters.keys import Keys, Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import dense_layer, holds_integers, part_keys
from remerge.adapters.tuners.shared import check_drawn, held, projection, split_shared
from remerge.adapters.tuners.targets import TargetConfig, targets
from remerge.adapters.tuners.weights import Weight, all_fit
from remerge.errors import BadInput

# What numpy's generators take; torch's are not used here.
ProjectionSeed = Annotated[int, Field(ge=0, lt=2**128)]


class UniLoraConfig(TargetConfig):
    """The fields that decide a merge; defaults are PEFT's (unilora/config.py)."""

    r: Rank = 4
    proj_seed: ProjectionSeed = 42
    theta_d_length: Annotated[int, Field(gt=0, le=2**31)] = 256
    save_indices: bool = False


Context = Reading[UniLoraConfig]


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    shared, own = split_shared(layers)
    theta = projection(context, shared, "theta_d", (context.config.theta_d_length,))
    if theta is None:
        return []
    if context.config.save_indices:
        return [edit for parts in own for edit in _stored(context, parts, theta)]
    for parts in own:
        context.only(parts, frozenset())
    return _dealt(context, theta, next(iter(shared.values())))


def _stored(context: Context, parts: Parts, theta: Callable[[], torch.Tensor]) -> list[Edit]:
    dense = dense_layer(context, parts)
    wanted = ("indices_A", "indices_B", "scales_A", "scales_B")
    names = context.all_of(parts, *wanted, prefix="unilora_")
    if dense is None or names is None:
        return []
    shape_a, shape_b = _shapes(context, dense)
    if not all_fit(context, dense, {names[2]: shape_a, names[3]: shape_b}):
        return []
    for name, shape in zip(names[:2], (shape_a, shape_b), strict=True):
        if not holds_integers(context, name):
            return []
        if context.stored(name) != shape:
            problem = f"has shape {context.stored(name)}, but {dense.module} needs {shape}"
            context.misfits.add(name, problem, "shape")
            return []

    def factor(shape: tuple[int, int], indices: str, scales: str) -> Factor:
        def read() -> torch.Tensor:
            at = context.adapter.read(indices).to(torch.int64)
            if int(at.min()) < 0 or int(at.max()) >= context.config.theta_d_length:
                raise BadInput(
                    f"The adapter's {indices} names a number outside of theta_d, which has "
                    f"{context.config.theta_d_length}.",
                    hint="Save the adapter again from the training run.",
                )
            return theta().to(torch.float64)[at] * context.adapter.read(scales)

        return made(shape, read)

    right = factor(shape_a, names[0], names[2])
    left = factor(shape_b, names[1], names[3])
    return [Edit(dense.parameter, (dense.low_rank(left, right, 1.0),))]


def _dealt(context: Context, theta: Callable[[], torch.Tensor], tensor: str) -> list[Edit]:
    config = context.config
    found: list[Weight] = []
    for module in targets(context, ("Linear", "Conv1D")):
        dense = dense_layer(context, Parts(module, 0, False, {"theta_d": tensor}))
        if dense is not None:
            found.append(dense)
    ends = np.cumsum([size for dense in found for size in _sizes(context, dense)]).tolist()

    check_drawn("Uni-LoRA", ends[-1])

    @cache
    def deal() -> tuple[torch.Tensor, torch.Tensor]:
        indices = _shuffled(ends[-1], config.theta_d_length, config.proj_seed)
        counts = torch.bincount(indices, minlength=config.theta_d_length)
        # Every number that is used at all is used about as often.
        return indices, counts.clamp(min=1).to(torch.float32).rsqrt()

    def factor(shape: tuple[int, int], end: int, weight: str) -> Factor:
        keep = held(context, weight)

        def read() -> torch.Tensor:
            indices, scales = deal()
            at = indices[end - shape[0] * shape[1] : end].reshape(shape)
            return theta().to(torch.float64)[at] * keep(scales)[at]

        return made(shape, read)

    edits: list[Edit] = []
    for place, dense in enumerate(found):
        shape_a, shape_b = _shapes(context, dense)
        right = factor(shape_a, ends[2 * place], dense.parameter)
        left = factor(shape_b, ends[2 * place + 1], dense.parameter)
        edits.append(Edit(dense.parameter, (dense.low_rank(left, right, 1.0),)))
    return edits


def _shapes(context: Context, dense: Weight) -> tuple[tuple[int, int], tuple[int, int]]:
    """Those of A and B."""
    return (context.config.r, dense.inputs), (dense.outputs, context.config.r)


def _sizes(context: Context, dense: Weight) -> tuple[int, int]:
    return context.config.r * dense.inputs, context.config.r * dense.outputs


def _shuffled(count: int, length: int, seed: int) -> torch.Tensor:
    """``count`` indices under ``length``, each as often as any other or once more
    (unilora/model.py, generate_index)."""
    generator = np.random.default_rng(seed)
    indices = np.repeat(np.arange(length), count // length)
    if count % length:
        extra = generator.choice(length, size=count % length, replace=False)
        indices = np.concatenate([indices, extra])
    generator.shuffle(indices)
    return torch.as_tensor(indices, dtype=torch.int64)


def _notes(context: Context, keys: Keys) -> list[str]:
    if context.config.save_indices:
        return []
    return [
        "The adapter was saved without its indices; they were dealt again from the seed, over the "
        "modules that target_modules names in this model, as PEFT does."
    ]


UNILORA = Tuner(
    "unilora",
    UniLoraConfig,
    part_keys("unilora", "indices_A", "indices_B", "scales_A", "scales_B", shared=("theta_d",)),
    _edits,
    notes=_notes,
    ordered=True,
    places=frozenset({"indices_A", "indices_B"}),
)
