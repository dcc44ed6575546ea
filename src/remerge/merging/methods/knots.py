"""KnOTS (Stoica et al., arXiv:2410.19735): adapters aligned by one singular value decomposition.

A layer's deltas (outputs, inputs) side by side are ``[delta_1 .. delta_n] = U S [V_1 .. V_n]``;
the ``V_i (k, inputs)`` are merged ``within`` that common basis, and ``W' = W + U S V``.

As in the authors' code, ``ties`` works on ``S V_i``: of each the ``int(density * k * inputs) + 1``
largest magnitudes stay, signs are elected on them, and the mean of ``w_i S V_i`` over the adapters
that agree is taken. Here every layer is trimmed by itself, there a model's layers all at once. With
density 1 it is the same whether S is on U's or on V's side.

From factors: ``S V_i = C_i A_i`` with small ``C_i (k, r_i)``, so that the merged matrix (k, inputs)
is computed when it is used; what is kept is ``C_i``, and ``U`` in terms of all ``B_i``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
from remerge.merging.methods.blocks import Block, blocks_of, pieces, reader, scaled
from remerge.merging.methods.disjoint import kept_by, mean_of_agreeing
from remerge.merging.methods.factors import (
    as_low_rank,
    bytes_for,
    decomposed,
    inverse,
    padded,
    triangle,
    triangles,
)
from remerge.merging.methods.method import Joint, Method, Parameters, PerAdapter, Shares
from remerge.merging.selection import EVERYTHING, Cut, largest


class KnotsParameters(Parameters):
    """``within``: how the aligned deltas are merged, by sum (the plain sum of the deltas) or ties.
    ``density``: share of each aligned delta's values that stays, for ties."""

    within: Literal["sum", "ties"] = "ties"
    density: Shares = (1.0,)


@dataclass(frozen=True, eq=False)
class Knots:
    """``W[block] += U @ merged``, transposed where the layer is stored so.

    Preparations: ``outer (K, k)``, with which ``U`` is all ``B_i`` side by side times it; ``inner
    (k, K)``, the ``C_i`` side by side; ``cuts (adapters, 2)`` where values are trimmed.
    """

    block: Block
    density: PerAdapter
    name: str = "knots"
    _held: dict[str, Factor] = field(default_factory=dict[str, Factor])
    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for part in self.block.parts for factor in part.step.factors)

    @property
    def rank(self) -> int:
        return self.block.rank

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the preparation, the adapters' own factors apart."""
        return bytes_for(self.block)

    @property
    def _inputs(self) -> int:
        return self.block.height if self.block.turned else self.block.width

    def _inputs_of(self, wanted: range, load: Load) -> torch.Tensor:
        """All A_i over each other, transposed: some inputs of them, ``(len(wanted), K)``."""
        block = self.block
        return block.left(wanted, load) if block.turned else block.right(wanted, load)

    def _outputs_of(self, wanted: range, load: Load) -> torch.Tensor:
        """All B_i side by side: some outputs of them, ``(len(wanted), K)``."""
        block = self.block
        return block.right(wanted, load) if block.turned else block.left(wanted, load)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        block = self.block
        rows, cols = triangles(block, load)
        outputs, inputs = (cols, rows) if block.turned else (rows, cols)
        factors = outputs * block.scales(weighted=False)
        # Each A_i alone as a triangle: with orthonormal rows on its right it is the whole.
        beside = [factors[:, at] @ triangle([inputs[:, at]]).T for at, _ in block.adapters]
        basis, _, _ = decomposed(torch.cat(beside, 1))
        found = inverse(outputs) @ basis, basis.T @ factors
        # Not empty where all deltas are zero.
        outer, inner = padded(*found, max(1, basis.shape[1]))
        prepared = {"outer": outer.contiguous(), "inner": inner.contiguous()}
        return prepared | self._cuts(prepared, load)

    def _cuts(self, prepared: Prepared, load: Load) -> dict[str, torch.Tensor]:
        """For each adapter the cut that takes its largest values, counted input by input."""
        density = [self.density[number] for number in self._numbers]
        if all(share >= 1.0 for share in density):
            return {}
        elements = self._inputs * prepared["inner"].shape[0]
        asked = [kept_by(share, elements) for share in density]

        def blocks() -> Iterator[tuple[int, torch.Tensor]]:
            for first, values in self._aligned(prepared, load):
                yield first, values.flatten(1)

        found = largest(blocks, [(i, _always(count)) for i, count in enumerate(asked)])
        return {"cuts": torch.tensor([[cut.key, cut.last] for cut in found], dtype=torch.int64)}

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(part.adapter for part in self.block.parts))

    def _aligned(self, prepared: Prepared, load: Load) -> Iterator[tuple[int, torch.Tensor]]:
        """``S V_i`` transposed, (adapters, inputs, k), a few inputs at a time, each with the number
        of the values before it; the same blocks always."""
        inner = prepared["inner"].cpu()
        width = inner.shape[0]
        for some in pieces(self._inputs, width * len(self.block.adapters)):
            factors = self._inputs_of(some, load).cpu()
            parts = [factors[:, at] @ inner[:, at].T for at, _ in self.block.adapters]
            yield some.start * width, torch.stack(parts)

    def _merged(self, prepared: Prepared) -> torch.Tensor:
        """The merged ``S V``, transposed: (inputs, k)."""
        found: list[torch.Tensor] = []
        weights = [weight for _, weight in self.block.adapters]
        for first, values in self._aligned(prepared, reader()):
            for delta, cut in zip(values, self._cuts_of(prepared), strict=True):
                cut.keep(delta, first)
            found.append(mean_of_agreeing(values, weights))
        return torch.cat(found)

    def _cuts_of(self, prepared: Prepared) -> list[Cut]:
        if "cuts" not in prepared:
            return [EVERYTHING] * len(self.block.adapters)
        return [Cut(int(cut[0]), int(cut[1])) for cut in prepared["cuts"]]

    def _merged_factor(self, prepared: Prepared) -> Factor:
        """The merged matrix for the cache of factors, always the same one: `load` knows it by
        identity."""
        shape = self._inputs, prepared["inner"].shape[0]
        made = Factor(shape, lambda: self._merged(prepared))
        return self._held.setdefault("merged", made)

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        block = self.block
        rows = overlap(window.rows, block.row, block.height)
        cols = overlap(window.cols, block.col, block.width)
        if rows is None or cols is None:
            return
        outputs, inputs = (cols[1], rows[1]) if block.turned else (rows[1], cols[1])
        merged = load(self._merged_factor(prepared))[inputs]
        some = self._outputs_of(range(outputs.start, outputs.stop), load)
        basis = some.to(tile.device) @ prepared["outer"].to(tile.device)
        if block.turned:
            tile[rows[0], cols[0]].addmm_(merged, basis.T)
        else:
            tile[rows[0], cols[0]].addmm_(basis, merged.T)

    def low_rank(self, load: Load, prepared: Prepared) -> LowRank:
        block = self.block
        merged = load(self._merged_factor(prepared)).cpu()
        count = block.width if block.turned else block.height
        basis = self._outputs_of(range(count), load).cpu() @ prepared["outer"]
        left, right = (merged, basis.T) if block.turned else (basis, merged.T)
        return as_low_rank(block, left, right, self.rank)


def _always(count: int) -> Callable[[int], int]:
    return lambda values: count


def _combine(joint: Joint, parameters: KnotsParameters) -> tuple[Delta, ...]:
    blocks, others = blocks_of(joint, "knots")
    steps: list[Delta] = []
    for block in blocks:
        if parameters.within == "sum":
            steps += scaled(block)
        else:
            steps.append(Knots(block, parameters.density))
    return (*joint.replacements, *steps, *others)


KNOTS = Method("knots", KnotsParameters, _combine)
