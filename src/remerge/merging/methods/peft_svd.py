"""PEFT's variants by decomposition: `ties_svd`, `dare_linear_svd`, `dare_ties_svd` and
`magnitude_prune_svd`.

Every delta ``s_i B_i A_i`` (rows, columns) is pruned, weighted and combined value by value
(`peft_rules`), and the nearest matrix of rank ``svd_rank`` is taken (PEFT lora/model.py,
_svd_generalized_task_arithmetic_weighted_adapter). What is combined has any rank, so that it is
decomposed itself: exactly up to 2^22 values, as PEFT does; above that it is only ever multiplied, a
few rows at a time, and decomposed at random with a fixed seed, within 1 % of the least error. As
in PEFT the result is multiplied by ``sqrt(rank)`` where the first adapter is rank-stabilised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from remerge.adapters.deltas import (
    BaseMatrix,
    Delta,
    Factor,
    Load,
    LowRank,
    Prepared,
    Window,
    overlap,
)
from remerge.merging import extraction
from remerge.merging.methods.blocks import Block, pieces
from remerge.merging.methods.factors import as_low_rank, decomposed, padded
from remerge.merging.methods.method import Joint, Method
from remerge.merging.methods.peft_factors import combined, inherited_scale, peft_blocks
from remerge.merging.methods.peft_rules import (
    DrawnElectedRankParameters,
    DrawnRankParameters,
    ElectedRankParameters,
    PeftRule,
    PrunedRankParameters,
    RankParameters,
    rule_of,
)
from remerge.merging.selection import Cut

RANK_STABILISED = (
    "{} gives what PEFT does: sqrt(rank) times too much where the first adapter is rank-stabilised."
)

# The largest matrix that goes to LAPACK whole, and how many of its size are held then.
_EXACT = 2**22
_COPIES = 6


@dataclass(frozen=True, eq=False)
class PeftSvd:
    """``W[block] += left @ right``, float32 factors that are its preparations."""

    name: str
    block: Block
    rule: PeftRule
    joint: Joint
    asked: int | None
    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for part in self.block.parts for factor in part.step.factors)

    @property
    def rank(self) -> int:
        rank = self.asked or max(self.joint.scope.largest_rank, self.block.largest)
        return min(rank, self.block.height, self.block.width)

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the preparation, the adapters' own factors apart."""
        block = self.block
        stack = 8 * 4 * max(2**18, len(block.adapters) * block.width)
        elements = block.height * block.width
        if elements <= _EXACT:
            return stack + 8 * _COPIES * elements
        return stack + extraction.bytes_needed((block.height, block.width), self.rank)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        found = _Combination(self.name, self.block, self.rule, load)
        left, right = padded(*found.nearest(self.rank), self.rank)
        extra = inherited_scale(self.joint, self.asked)()
        return {"left": _narrow(left * extra), "right": _narrow(right)}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = overlap(window.rows, self.block.row, self.block.height)
        cols = overlap(window.cols, self.block.col, self.block.width)
        if rows is None or cols is None:
            return
        left = prepared["left"][rows[1]].to(tile.device, torch.float64)
        right = prepared["right"][:, cols[1]].to(tile.device, torch.float64)
        tile[rows[0], cols[0]].addmm_(left, right)

    def low_rank(self, load: Load, prepared: Prepared) -> LowRank:
        left, right = (prepared[side].to(torch.float64) for side in ("left", "right"))
        return as_low_rank(self.block, left, right, self.rank)


def _narrow(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float32).contiguous()


@dataclass(frozen=True, eq=False)
class _Combination:
    """The combined deltas of a block, a few rows at a time."""

    method: str
    block: Block
    rule: PeftRule
    load: Load

    @property
    def name(self) -> str:
        """What seeds the random decomposition."""
        return f"{self.method}|{self._key}"

    @property
    def _key(self) -> str:
        return f"{self.block.tensor}|{self.block.row}|{self.block.col}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.block.height, self.block.width

    def nearest(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the nearest matrix of this rank, or less where the matrix has less."""
        if self.block.height * self.block.width <= _EXACT:
            left, values, right = decomposed(torch.cat([rows for _, rows in self._rows()]))
            roots = values[:rank].sqrt()
            return left[:, :rank] * roots, roots[:, None] * right[:rank]
        squared = sum(float(rows.flatten() @ rows.flatten()) for _, rows in self._rows())
        if squared == 0.0:
            return torch.zeros(self.shape[0], 0), torch.zeros(0, self.shape[1])
        found = extraction.fit(self, extraction.Wanted(rank), squared)
        return found.left, found.right

    def times(self, right: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows @ right for _, rows in self._rows()])

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(self.shape[1], left.shape[1], dtype=torch.float64)
        for at, rows in self._rows():
            found += rows.T @ left[at.start : at.stop]
        return found

    def _rows(self) -> Iterator[tuple[range, torch.Tensor]]:
        weights = [weight for _, weight in self.block.adapters]
        for at, values in self._deltas():
            first = at.start * self.block.width
            yield (
                at,
                self.rule.combine(values, self._adapters, weights, self._cuts, self._key, first),
            )

    @cached_property
    def _cuts(self) -> list[Cut]:
        def stacks() -> Iterator[tuple[int, torch.Tensor]]:
            for at, values in self._deltas():
                yield at.start * self.block.width, values

        return self.rule.cuts(self._adapters, stacks, self.shape[0] * self.shape[1])

    @cached_property
    def _adapters(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(part.adapter for part in self.block.parts))

    def _deltas(self) -> Iterator[tuple[range, torch.Tensor]]:
        """The adapters' deltas (adapters, rows, columns), the same rows at a time always."""
        places = {adapter: place for place, adapter in enumerate(self._adapters)}
        for rows in pieces(self.block.height, len(places) * self.block.width):
            shape = len(places), len(rows), self.block.width
            stack = torch.zeros(shape, dtype=torch.float64)
            for part in self.block.parts:
                stack[places[part.adapter]] += self.block.delta(part, rows, self.load)
            yield rows, stack


def _combiner(rule: str) -> Callable[[Joint, RankParameters], tuple[Delta, ...]]:
    method = f"peft_{rule}_svd"

    def combine(joint: Joint, parameters: RankParameters) -> tuple[Delta, ...]:
        # PEFT takes one adapter alone by `linear`.
        alone = len(joint.terms) == 1
        asked = rule_of("linear" if alone else rule, parameters)
        steps: list[Delta] = []
        for block in peft_blocks(joint, method, asked):
            if alone:
                steps.append(combined(block, method, asked, inherited_scale(joint)))
            else:
                steps.append(PeftSvd(method, block, asked, joint, parameters.svd_rank))
        return (*joint.replacements, *steps)

    return combine


def _method(rule: str, parameters: type[RankParameters]) -> Method[Any]:
    name = f"peft_{rule}_svd"
    return Method(name, parameters, _combiner(rule), notes=(RANK_STABILISED.format(name),))


PEFT_TIES_SVD = _method("ties", ElectedRankParameters)
PEFT_DARE_LINEAR_SVD = _method("dare_linear", DrawnRankParameters)
PEFT_DARE_TIES_SVD = _method("dare_ties", DrawnElectedRankParameters)
PEFT_MAGNITUDE_PRUNE_SVD = _method("magnitude_prune", PrunedRankParameters)
