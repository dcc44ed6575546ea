"""RoAd (arXiv:2409.00119; PEFT tuners/road): pairs of a layer's outputs turned and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from remerge.adapters.blocks import span_of
from remerge.adapters.config import PeftConfig
from remerge.adapters.deltas import BaseMatrix, Factor, Load, Prepared
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.regions import Index
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.dense import part_keys
from remerge.adapters.tuners.weights import fits, weight_of

# Values of each kind that a variant stores for 2 outputs.
_STORED = {"road_1": 1, "road_2": 2, "road_4": 4}


class RoadConfig(PeftConfig):
    """``group_size``: outputs in a group, of which the first half pairs with the second."""

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: Annotated[int, Field(gt=0, multiple_of=2)] = 64


Context = Reading[RoadConfig]


@dataclass(frozen=True)
class PairsTurned:
    """``y1 = a * x1 - b * x2`` and ``y2 = a * x2 + b * x1`` for rows of the two halves of a group.

    ``columns`` is ``(out, 2)``: a and b of every row. ``band`` is the group.
    """

    columns: Factor
    band: int
    gathers: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.columns,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def change(
        self, block: torch.Tensor, rows: Index, cols: Index, load: Load, prepared: Prepared
    ) -> None:
        same, other = load(self.columns)[span_of(rows)].T.unsqueeze(2)
        halves = block.reshape(-1, 2, self.band // 2, block.shape[1])
        partner = torch.stack((-halves[:, 1], halves[:, 0]), dim=1).reshape(block.shape)
        block.mul_(same).add_(partner * other)


def _edits(context: Context, layers: Sequence[Parts]) -> list[Edit]:
    return [edit for parts in layers for edit in _layer(context, parts)]


def _layer(context: Context, parts: Parts) -> list[Edit]:
    names = context.all_of(parts, "theta", "alpha", prefix="road_")
    weight = weight_of(context, parts, ("Linear",))
    if names is None or weight is None:
        return []
    group = context.config.group_size
    if weight.outputs % group:
        problem = f"{weight.outputs} outputs of {weight.module} are no groups of {group}"
        context.misfits.add(names[0], problem, "shape")
        return []
    size = weight.outputs // 2 * _STORED[context.config.variant]
    if any(not fits(context, name, (size,), weight) for name in names):
        return []
    theta, alpha = (matrix(context.adapter, name, (size, 1)) for name in names)
    step = PairsTurned(_columns(theta, alpha, weight.outputs, context.config), group)
    edits = [Edit(weight.parameter, (step,))]
    if context.shape(weight.bias) is not None:
        edits.append(Edit(weight.bias, (step,)))
    return edits


def _columns(theta: Factor, alpha: Factor, outputs: int, config: RoadConfig) -> Factor:
    """``alpha * cos(theta)`` and ``alpha * sin(theta)`` of every output (PEFT road/layer.py,
    _prepare_cols)."""
    group = config.group_size

    def spread(values: torch.Tensor) -> torch.Tensor:
        """(out, 2): what makes the first number of an output, and what the second."""
        if config.variant == "road_1":
            halves = values.reshape(-1, 1, group // 2).expand(-1, 2, -1)
            return halves.reshape(outputs, 1).expand(-1, 2)
        if config.variant == "road_2":
            return values.reshape(outputs, 1).expand(-1, 2)
        return values.reshape(-1, 2, group).transpose(1, 2).reshape(outputs, 2)

    def read() -> torch.Tensor:
        angles = spread(theta.read())
        return spread(alpha.read()) * torch.stack((angles[:, 0].cos(), angles[:, 1].sin()), dim=1)

    return made((outputs, 2), read)


ROAD = Tuner("road", RoadConfig, part_keys("road", "theta", "alpha"), _edits)
