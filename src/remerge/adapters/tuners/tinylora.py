"""TinyLoRA: a few trained numbers, shared by layers, that weigh fixed random matrices.

``W + B (sum_i v_i P_i) A`` (PEFT tinylora/layer.py), where A and B are stored parts of the base's
decomposition, and P is stored or drawn again. Which v a layer uses, and the seed of its P, depend
on its place among the adapted layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field

from remerge.adapters.config import Number, PeftConfig
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.shared import check_drawn, held, projection, split_shared
from remerge.adapters.tuners.targets import in_order
from remerge.adapters.tuners.weights import Weight, all_fit, weight_of

_KEY = re.compile(
    r"(?P<module>.+)\.tinylora_(?:(?P<part>[ABP])(?:\.[^.]+)?|v(?:\.[^.]+)?\.(?P<group>\d+))"
)
_KINDS = ("Linear", "Conv1D", "Embedding")


class TinyLoraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (tinylora/config.py)."""

    u: Annotated[int, Field(gt=0, le=2**31)] = 64
    weight_tying: Annotated[Number, Field(ge=0, le=1)] = 0.0
    projection_seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 42
    save_projection: bool = True


Context = Reading[TinyLoraConfig]


def _layer_key(path: str) -> tuple[str, str] | None:
    found = _KEY.fullmatch(path)
    if found is None:
        return None
    if found["group"] is None:
        return found["module"], found["part"]
    return ("", f"v.{found['group']}") if found["module"] == "base_model" else None


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    shared, own = split_shared(layers)
    weights = {parts.module: weight_of(context, parts, _KINDS) for parts in own}
    if not all(weights.values()):
        return []
    places = {module: place for place, module in enumerate(in_order(context, weights))}
    groups = _groups(context.config, len(places))
    unused = {part: name for part, name in shared.items() if part not in map(_part, groups)}
    for name in unused.values():
        context.misfits.add(name, f"none of the {len(places)} adapted layers uses it", "unknown")
    edits: list[Edit] = []
    for parts in own:
        weight, place = weights[parts.module], places[parts.module]
        numbers = projection(context, shared, _part(groups[place]), (context.config.u,))
        if weight is not None and numbers is not None:
            edits += _edit(context, parts, weight, place, numbers)
    return edits


def _part(group: int) -> str:
    return f"v.{group}"


def _groups(config: TinyLoraConfig, layers: int) -> list[int]:
    """The v of each layer in order (tinylora/model.py, _create_and_replace)."""
    count = max(1, round(layers * (1.0 - config.weight_tying)))
    size = max(1, layers // count)
    return [min(place // size, count - 1) for place in range(layers)]


def _edit(
    context: Context,
    parts: Parts,
    weight: Weight,
    place: int,
    numbers: Callable[[], torch.Tensor],
) -> list[Edit]:
    wanted = ("A", "B", "P") if context.config.save_projection else ("A", "B")
    names = context.all_of(parts, *wanted, prefix="tinylora_")
    if names is None:
        return []
    a, b = names[:2]
    rank = context.stored(a)[0] if context.stored(a) else 0
    shapes = {a: (rank, weight.inputs), b: (weight.outputs, rank)}
    shapes |= dict.fromkeys(names[2:], (context.config.u, rank, rank))
    if not all_fit(context, weight, shapes):
        return []
    if len(names) > 2:
        read = partial(context.adapter.read, names[2])
    else:
        read = _projections(context, weight, place, rank)

    def weighed() -> torch.Tensor:
        fixed = read()
        middle = torch.einsum("i,ijk->jk", numbers().to(torch.float64), fixed.to(torch.float64))
        return context.adapter.read(b).to(torch.float64) @ middle

    left = made((weight.outputs, rank), weighed)
    return [Edit(weight.parameter, (weight.low_rank(left, matrix(context.adapter, a), 1.0),))]


def _projections(
    context: Context, weight: Weight, place: int, rank: int
) -> Callable[[], torch.Tensor]:
    """P ``(u, r, r)`` as PEFT draws it (_init_projection), rounded as PEFT holds it."""
    check_drawn(weight.module, context.config.u * rank * rank)
    keep = held(context, weight.parameter)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(context.config.projection_seed + place)
        size = (context.config.u, rank, rank)
        return keep(torch.normal(0.0, 1.0 / rank**0.5, size, generator=generator))

    return draw


TINYLORA = Tuner("tinylora", TinyLoraConfig, _layer_key, _edits, ordered=True)
