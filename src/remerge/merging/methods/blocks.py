"""The places of one tensor that adapters change by factors, each combined by itself.

A fused tensor holds several layers (q, k and v, one expert after another); their factors stand at
places of their own. Steps of all adapters at one place make a `Block`. Where places overlap in
part, because one adapter adapts q alone and another the fused layer, they are one block, and
factors count as zero where they do not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from remerge.adapters.deltas import Added, Delta, Factor, Load, LowRank, overlap, rows_of
from remerge.errors import Unsupported
from remerge.merging.methods.method import Joint

# Values of the factors that are at hand at once; part of what the last bits depend on.
_ELEMENTS = 2**18


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter's low-rank step in a block, ``row`` and ``col`` from the block's corner."""

    adapter: int
    weight: float
    step: LowRank
    row: int
    col: int

    @property
    def rank(self) -> int:
        return self.step.left.shape[1]


@dataclass(frozen=True, eq=False)
class Block:
    """Rows ``[row, row + height)`` and columns ``[col, col + width)`` of a tensor.

    With all factors side by side its change is ``L @ C @ R``, ``L (height, K)`` and ``R (K,
    width)``; for the weighted sum ``C`` is the diagonal ``scales``. Parts are in the order of the
    adapters.
    """

    tensor: str
    row: int
    col: int
    height: int
    width: int
    parts: tuple[Part, ...]

    @property
    def rank(self) -> int:
        """K, the sum of all ranks."""
        return sum(part.rank for part in self.parts)

    @property
    def turned(self) -> bool:
        """Whether the layer is stored transposed: its outputs are columns."""
        return self.parts[0].step.turned

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """Which columns of ``L`` are those of each part."""
        ends = [sum(part.rank for part in self.parts[: i + 1]) for i in range(len(self.parts))]
        return tuple(slice(end - p.rank, end) for end, p in zip(ends, self.parts, strict=True))

    @cached_property
    def adapters(self) -> tuple[tuple[slice, float], ...]:
        """For each adapter that takes part its columns of ``L`` and its weight."""
        found: dict[int, tuple[slice, float]] = {}
        for part, span in zip(self.parts, self.spans, strict=True):
            start = found[part.adapter][0].start if part.adapter in found else span.start
            found[part.adapter] = slice(start, span.stop), part.weight
        return tuple(found.values())

    @property
    def largest(self) -> int:
        """The largest rank that one adapter has here."""
        return max(span.stop - span.start for span, _ in self.adapters)

    def scales(self, *, weighted: bool = True) -> torch.Tensor:
        """The factor of each column of ``L``: its step's scale, and its adapter's weight."""
        return torch.tensor(
            [
                part.step.scale * (part.weight if weighted else 1.0)
                for part in self.parts
                for _ in range(part.rank)
            ],
            dtype=torch.float64,
        )

    def left(self, rows: range, load: Load) -> torch.Tensor:
        """Rows of ``L``, counted from the block's first."""
        lefts = (part.step.left for part in self.parts)
        starts = (part.row for part in self.parts)
        return self._beside(lefts, starts, rows, lambda f, at: rows_of(f, at, load))

    def right(self, cols: range, load: Load) -> torch.Tensor:
        """Columns of ``R``, transposed, counted from the block's first: ``(len(cols), K)``."""
        rights = (part.step.right for part in self.parts)
        starts = (part.col for part in self.parts)
        return self._beside(rights, starts, cols, lambda f, at: load(f)[:, at].T, axis=1)

    def _beside(
        self,
        factors: Iterator[Factor],
        starts: Iterator[int],
        wanted: range,
        read: Callable[[Factor, slice], torch.Tensor],
        axis: int = 0,
    ) -> torch.Tensor:
        found: torch.Tensor | None = None
        all_of_it = slice(0, len(wanted))
        placed = [
            (factor, span, overlap(wanted, start, factor.shape[axis]))
            for factor, start, span in zip(factors, starts, self.spans, strict=True)
        ]
        covered = all(met is not None and met[0] == all_of_it for _, _, met in placed)
        new = torch.empty if covered else torch.zeros
        for factor, span, met in placed:
            if met is None:
                continue
            values = read(factor, met[1])
            if found is None:
                shape = len(wanted), self.rank
                found = new(shape, dtype=torch.float64, device=values.device)
            found[met[0], span] = values
        return torch.zeros(len(wanted), self.rank, dtype=torch.float64) if found is None else found

    def delta(self, part: Part, rows: range, load: Load) -> torch.Tensor:
        """What a part alone adds to these rows of the block, ``(len(rows), width)``."""
        values = torch.zeros(len(rows), self.width, dtype=torch.float64)
        met = overlap(rows, part.row, part.step.left.shape[0])
        if met is not None:
            left = rows_of(part.step.left, met[1], load).cpu()
            cols = slice(part.col, part.col + part.step.right.shape[1])
            values[met[0], cols] = part.step.scale * (left @ load(part.step.right).cpu())
        return values

    def only(self, parts: Sequence[Part]) -> Block:
        """The same place with some of the parts."""
        return replace(self, parts=tuple(parts))


def reader() -> Load:
    """Loads factors without the cache, for what the cache itself asks for; each is read once."""
    held: dict[int, tuple[Factor, torch.Tensor]] = {}

    def load(factor: Factor) -> torch.Tensor:
        if id(factor) not in held:
            held[id(factor)] = factor, factor.read()
        return held[id(factor)][1]

    return load


def pieces(length: int, width: int) -> Iterator[range]:
    """``length`` rows of ``width`` values as blocks that are the same on every machine."""
    step = max(1, _ELEMENTS // max(1, width))
    for first in range(0, length, step):
        yield range(first, min(first + step, length))


def blocks_of(joint: Joint, method: str) -> tuple[tuple[Block, ...], tuple[Delta, ...]]:
    """The blocks of a tensor, layer by layer, and its other steps: biases, already weighted.

    Raises `Unsupported` for a delta that is no product of factors, and where one adapter both
    replaces rows and adds to others.
    """
    parts: list[Part] = []
    others: list[Delta] = []
    ranks = [s.left.shape[1] for t in joint.terms for s in t.steps if isinstance(s, LowRank)]
    joint.scope.largest_rank = max([joint.scope.largest_rank, *ranks])
    for term in joint.terms:
        if term.steps and (not term.additive or term.rows):
            raise _no_factors(joint, term.adapter, method, replaces=bool(term.rows))
        for step in term.steps:
            if isinstance(step, LowRank):
                parts.append(Part(term.adapter, term.weight, step, step.row, step.col))
            else:
                assert isinstance(step, Added)
                others.append(replace(step, scale=step.scale * term.weight))
    # A tied tensor is two layers: the embedding, whose factors are turned, and the head.
    layers = ([part for part in parts if part.step.turned is turned] for turned in (False, True))
    return tuple(b for layer in layers for b in grouped(joint.tensor, layer)), tuple(others)


def grouped(tensor: str, parts: Sequence[Part]) -> tuple[Block, ...]:
    """The blocks that these steps make, in the order of their places."""
    return tuple(_block(tensor, group) for group in _overlapping(parts))


def scaled(block: Block) -> tuple[LowRank, ...]:
    """The block's weighted sum, as the adapters' own steps."""
    return tuple(
        replace(part.step, scale=part.step.scale * part.weight) if part.weight != 1.0 else part.step
        for part in block.parts
    )


def _rectangle(part: Part) -> tuple[int, int, int, int]:
    """First row, first column, and where rows and columns end."""
    step = part.step
    return step.row, step.col, step.row + step.left.shape[0], step.col + step.right.shape[1]


def _overlapping(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in groups whose rectangles overlap, directly or by way of others; in the order of
    their places."""
    groups: list[tuple[list[int], list[Part]]] = []
    # Sorted by rows: a group that ends above a part meets none that follows either.
    open_from = 0
    for part in sorted(parts, key=_rectangle):
        row, col, row_stop, col_stop = _rectangle(part)
        while open_from < len(groups) and groups[open_from][0][2] <= row:
            open_from += 1
        box, members = [row, col, row_stop, col_stop], [part]
        kept: list[tuple[list[int], list[Part]]] = []
        for other, theirs in groups[open_from:]:
            if other[2] > row and other[0] < box[2] and other[1] < box[3] and box[1] < other[3]:
                box = [*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:])]
                members = theirs + members
            else:
                kept.append((other, theirs))
        groups[open_from:] = [*kept, (box, members)]
    return [members for _, members in sorted(groups, key=lambda group: group[0])]


def _block(tensor: str, parts: Sequence[Part]) -> Block:
    corners = [_rectangle(part) for part in parts]
    row, col = min(c[0] for c in corners), min(c[1] for c in corners)
    height, width = max(c[2] for c in corners) - row, max(c[3] for c in corners) - col
    moved = [replace(part, row=part.row - row, col=part.col - col) for part in parts]
    moved.sort(key=lambda part: part.adapter)
    return Block(tensor, row, col, height, width, tuple(moved))


def _no_factors(joint: Joint, adapter: int, method: str, *, replaces: bool) -> Unsupported:
    what = "replaces rows of it" if replaces else "its delta there is no product of two factors"
    return Unsupported(
        f"--method {method} combines factors, but adapter {adapter + 1} changes {joint.tensor} in "
        f"another way: {what}.",
        why="DoRA and most families besides LoRA change a weight by more than a product.",
        hint="Use a method on full deltas: --method sum, or --method ties.",
    )
