"""PEFT's element-wise variants: `linear`, `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`.

They combine the factors A ``(r, inputs)`` and B ``(outputs, r)`` apart, each as if it were a delta
(PEFT lora/model.py, add_weighted_adapter; the rules are in `peft_rules`)::

    A' = rule(sgn(w_i s_i) sqrt|w_i s_i|, A_i)    B' = rule(sqrt|w_i s_i|, B_i)    W' = W + B' A'

so that ``B' A'`` holds ``B_i A_j`` of different adapters, which none of them was trained with. The
numbers are PEFT's, rank-stabilised scaling of the first adapter included: PEFT's new adapter
inherits it, and is then ``sqrt(r)`` times too large. Only adapters that have the layer take part;
their ranks must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from remerge.adapters.deltas import Added, Delta, Factor, LowRank
from remerge.errors import Unsupported, UsageError
from remerge.merging.methods.blocks import Block, Part, blocks_of, pieces
from remerge.merging.methods.method import Joint, Method, Parameters
from remerge.merging.methods.peft_rules import (
    DrawnElectedParameters,
    DrawnParameters,
    ElectedParameters,
    LinearParameters,
    PeftRule,
    PrunedParameters,
    rule_of,
)

CROSS_TERMS = (
    "{} combines factors A and B apart, as PEFT does: the result also holds products of one "
    "adapter's B with another's A, and is sqrt(rank) times too large where the first adapter is "
    "rank-stabilised. For what the adapters do together use sum or cat."
)


@dataclass(frozen=True, eq=False)
class Side:
    """The factors of all adapters on one side, with what each counts."""

    factors: tuple[Factor, ...]
    adapters: tuple[int, ...]
    weights: tuple[float, ...]
    key: str

    def combined(self, rule: PeftRule, extra: Callable[[], float]) -> Factor:
        """Their combination by ``rule`` times ``extra``, computed when it is asked for."""
        return Factor(self.factors[0].shape, lambda: self._read(rule) * extra())

    def _read(self, rule: PeftRule) -> torch.Tensor:
        stack = torch.stack([factor.read() for factor in self.factors])
        adapters, rows, columns = stack.shape

        def stacks() -> Iterator[tuple[int, torch.Tensor]]:
            for some in pieces(rows, adapters * columns):
                yield some.start * columns, stack[:, some.start : some.stop]

        cuts = rule.cuts(self.adapters, stacks, rows * columns)
        found = [
            rule.combine(values, self.adapters, self.weights, cuts, self.key, first)
            for first, values in stacks()
        ]
        return torch.cat(found)


def combined(block: Block, method: str, rule: PeftRule, extra: Callable[[], float]) -> LowRank:
    """A block's step with factors that are combined by ``rule``; ``extra`` is a factor of it.

    Raises `Unsupported` where the factors differ in shape.
    """
    _check(block, method)
    scales = [part.weight * part.step.scale for part in block.parts]
    roots = tuple(math.sqrt(abs(scale)) for scale in scales)
    signed = tuple(math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True))
    adapters = tuple(part.adapter for part in block.parts)
    key = f"{block.tensor}|{block.row}|{block.col}"
    lefts = tuple(part.step.left for part in block.parts)
    rights = tuple(part.step.right for part in block.parts)
    # The sign goes to A alone, which is on the left where the layer is stored transposed.
    left = Side(lefts, adapters, signed if block.turned else roots, f"{key}|left")
    right = Side(rights, adapters, roots if block.turned else signed, f"{key}|right")
    return LowRank(
        left.combined(rule, lambda: 1.0),
        right.combined(rule, extra),
        1.0,
        block.row,
        block.col,
        block.turned,
    )


def peft_blocks(joint: Joint, method: str, rule: PeftRule) -> tuple[Block, ...]:
    """The blocks of a tensor; refuses the biases that PEFT would drop, and adapters of weight zero
    where PEFT would still let them elect signs."""
    if rule.elects and 0.0 in joint.weights:
        raise UsageError(
            f"--weights gives adapter {joint.weights.index(0.0) + 1} a weight of 0, with which "
            f"PEFT still lets it elect signs (--method {method}).",
            hint="Leave that adapter out.",
        )
    if any(isinstance(step, Added) for term in joint.terms for step in term.steps):
        raise Unsupported(
            f"The adapters train the bias {joint.tensor}, which PEFT drops when it combines them.",
            hint="Use another method, such as --method cat or --method ties, for lora_bias.",
        )
    return blocks_of(joint, method)[0]


def inherited_scale(joint: Joint, rank: int | None = None) -> Callable[[], float]:
    """What PEFT's new adapter scales by: 1, or sqrt(rank) where the first is rank-stabilised; the
    largest rank of all, which it has by default, is known once all tensors are planned."""
    return lambda: math.sqrt(rank or joint.scope.largest_rank) if joint.rslora else 1.0


def _check(block: Block, method: str) -> None:
    """Refuse factors of different shapes, which cannot be added up."""
    first = block.parts[0]
    for part in block.parts[1:]:
        if part.rank != first.rank:
            raise Unsupported(
                f"{block.tensor} has rank {first.rank} in adapter {first.adapter + 1} and "
                f"{part.rank} in adapter {part.adapter + 1}.",
                why=f"--method {method} adds up the factors themselves, as PEFT does.",
                hint="Use --method cat or --method svd, for which ranks may differ.",
            )
        if _shape(part) != _shape(first) or part.adapter == first.adapter:
            raise Unsupported(
                f"The adapters change different parts of {block.tensor} "
                f"({_shape(first)} and {_shape(part)} values).",
                why=f"--method {method} adds up the factors themselves, as PEFT does.",
                hint="Use --method cat, or a method on full deltas such as ties.",
            )


def _shape(part: Part) -> tuple[int, int]:
    return part.step.left.shape[0], part.step.right.shape[1]


def _combiner(rule: str) -> Callable[[Joint, Parameters], tuple[Delta, ...]]:
    method = f"peft_{rule}"

    def combine(joint: Joint, parameters: Parameters) -> tuple[Delta, ...]:
        # PEFT takes one adapter alone by `linear`.
        asked = rule_of("linear" if len(joint.terms) == 1 else rule, parameters)
        steps: list[Delta] = []
        for block in peft_blocks(joint, method, asked):
            steps.append(combined(block, method, asked, inherited_scale(joint)))
        return (*joint.replacements, *steps)

    return combine


def _method(rule: str, parameters: type[Parameters]) -> Method[Any]:
    name = f"peft_{rule}"
    return Method(name, parameters, _combiner(rule), notes=(CROSS_TERMS.format(name),))


PEFT_LINEAR = _method("linear", LinearParameters)
PEFT_TIES = _method("ties", ElectedParameters)
PEFT_DARE_LINEAR = _method("dare_linear", DrawnParameters)
PEFT_DARE_TIES = _method("dare_ties", DrawnElectedParameters)
PEFT_MAGNITUDE_PRUNE = _method("magnitude_prune", PrunedParameters)
