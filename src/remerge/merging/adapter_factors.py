"""The factors of a combination, parameter by parameter, in a few threads and bounded memory.

Products of factors give theirs exactly; any other change is decomposed as it streams by, computed
in float64 and never rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Added, Change, LowRank
from remerge.adapters.placing import move_low_rank
from remerge.adapters.regions import Region
from remerge.errors import BadInput, UsageError
from remerge.merging.adapter_plan import AdapterPlan, Product, Whole, inverse
from remerge.merging.budget import RESIDENT
from remerge.merging.combined import Combined
from remerge.merging.difference import assembled
from remerge.merging.extraction import Wanted, bytes_needed, fit
from remerge.merging.extraction_plan import Parameter
from remerge.merging.factored import Factored, as_low_rank, joined, nearest, norm
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.ordered import Room, give_back, in_order
from remerge.merging.patches import BLOCK, Patch, patches_of, stored_block, window
from remerge.merging.streamed import Streamed
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.dtypes import torch_dtype
from remerge.sources.reading import Source

# What a run holds beside its matrices: transformers and LAPACK come on top of what a merge needs.
HELD = RESIDENT + 2**25
_A_THREAD = 2**27
# A block of the base and of the deltas, beside those of a decomposition.
_BLOCKS = 8 * BLOCK


@dataclass(frozen=True)
class Pair:
    """``left @ right``, float64, with its distance from the change of its matrix."""

    left: torch.Tensor
    right: torch.Tensor
    missed: float = 0.0

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def padded(self, rank: int) -> Pair:
        """The same with directions of zero."""
        more = rank - self.rank
        if not more:
            return self
        left = torch.cat((self.left, self.left.new_zeros(self.left.shape[0], more)), 1)
        right = torch.cat((self.right, self.right.new_zeros(more, self.right.shape[1])))
        return Pair(left, right, self.missed)


@dataclass(frozen=True)
class Found:
    """The factors of one parameter, one pair a matrix, all of one rank; none where it does not
    change after all. ``norm`` is that of the whole change."""

    product: Product
    pairs: tuple[Pair, ...]
    norm: float

    @property
    def missed(self) -> float:
        return math.hypot(*(pair.missed for pair in self.pairs))


@dataclass(frozen=True)
class Factors:
    """A planned adapter, the merge that it comes from, and the room for finding it."""

    plan: AdapterPlan
    merged: MergedCheckpoint
    max_memory: int
    threads: int

    @property
    def room(self) -> int:
        return self.max_memory - HELD - self.plan.plan.adapter_bytes // 4

    def check_memory(self) -> None:
        """Refuse, before any work, a matrix whose decomposition does not fit; raises
        `UsageError`."""
        for product in self.plan.products:
            needed = _needed(product)
            if needed > self.room:
                total = needed + self.max_memory - self.room
                raise UsageError(
                    f"{product.parameter.name} {list(product.parameter.shape)} needs about "
                    f"{total / 2**30:.2f} GiB at rank {product.rank}, over the budget of "
                    f"{self.max_memory / 2**30:.2f} GiB.",
                    hint=f"Run again with --max-memory {-(-total // 2**30)}GiB.",
                )

    def found(self) -> Iterator[Found]:
        """The factors of every parameter, in the order of the plan."""
        room = Room(self.room)
        threads = max(1, min(self.threads, self.room // _A_THREAD))

        def job(product: Product) -> Found:
            give_back()
            needed, view = _needed(product), product.parameter.view
            held = 0 if product.exact else 8 * math.prod(view) // product.parameter.matrices
            keep = not product.exact and needed + held <= self.room // threads
            with room.taken(needed + held if keep else needed):
                return self._exact(product) if product.exact else self._nearest(product, keep)

        return in_order(self.plan.products, job, threads)

    def values(self, whole: Whole) -> tuple[torch.dtype, Iterator[torch.Tensor]]:
        """A whole parameter as the merge would store it, its rows in blocks."""
        plan = whole.tensor
        if plan is not None:
            return torch_dtype(plan.dtype), self._rows(plan)
        parameter = whole.parameter
        first = self.merged.plans[parameter.base[0].tensor]
        return torch_dtype(first.dtype), self._pieces(parameter)

    def _rows(self, plan: TensorPlan) -> Iterator[torch.Tensor]:
        for first in range(0, plan.elements, BLOCK):
            yield self.merged.read_elements(plan, first, min(BLOCK, plan.elements - first))

    def _pieces(self, parameter: Parameter) -> Iterator[torch.Tensor]:
        patches = self._patches(parameter)
        rows, columns = parameter.view
        height = max(1, BLOCK // max(columns, 1))
        for first in range(0, rows, height):
            part = range(first, min(first + height, rows))
            yield assembled(_Merged(self.merged), window(patches, part), (len(part), columns))

    def _patches(self, parameter: Parameter) -> tuple[Patch, ...]:
        side = parameter.base, self.plan.opened.tensors
        return patches_of(parameter.name, side, side, parameter.kind)

    def _exact(self, product: Product) -> Found:
        parameter = product.parameter
        height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
        terms: list[list[LowRank]] = [[] for _ in range(parameter.matrices)]
        for term in self._terms(parameter):
            last = term.row + term.left.shape[0] - 1
            for number in range(term.row // height, last // height + 1):
                terms[number].append(term)
        asked = self.plan.plan.recipe.adapter
        rank = None if asked is None else asked.svd_rank
        pairs = [_joined(each, (n * height, height, width), rank) for n, each in enumerate(terms)]
        total = math.hypot(*(math.hypot(norm(p.left, p.right), p.missed) for p in pairs))
        return _found(product, pairs, total)

    def _terms(self, parameter: Parameter) -> Iterator[LowRank]:
        """The products that make up a parameter's change, at their places in it."""
        for region in parameter.base:
            plan = self.merged.plans[region.tensor]
            change = plan.touched_by
            if change is None:
                continue
            back = inverse(region)
            prepared = self.merged.prepare(change, plan.origin)
            for step, numbers in zip(change.steps, prepared, strict=True):
                if isinstance(step, Factored):
                    step = as_low_rank(step, self.merged.load, numbers)
                assert isinstance(step, LowRank)
                moved = None if step.scale == 0.0 else move_low_rank(step, back)
                if moved is not None:
                    yield moved

    def _nearest(self, product: Product, keep: bool) -> Found:
        parameter = product.parameter
        height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
        patches, deltas = self._patches(parameter), _Deltas(self.merged)
        pairs: list[Pair] = []
        squared = 0.0
        for number in range(parameter.matrices):
            name, part = parameter.name, patches
            if parameter.form == "stack":
                name = f"{name}[{number}]"
                part = window(patches, range(number * height, (number + 1) * height))
            matrix = Streamed(name, (height, width), part, deltas.piece, keep)
            size = matrix.measure()
            squared += size
            if size == 0.0:
                pairs.append(_nothing(height, width))
                continue
            near = fit(matrix, Wanted(product.rank), size)
            missed = math.sqrt(max(0.0, size - float(near.squares.sum())))
            pairs.append(Pair(near.left, near.right, missed))
        return _found(product, pairs, math.sqrt(squared))


def _found(product: Product, pairs: list[Pair], total: float) -> Found:
    rank = max(pair.rank for pair in pairs)
    if not rank or total == 0.0:
        return Found(product, (), 0.0)
    return Found(product, tuple(pair.padded(rank) for pair in pairs), total)


def _nothing(height: int, width: int) -> Pair:
    wide = torch.float64
    return Pair(torch.zeros(height, 0, dtype=wide), torch.zeros(0, width, dtype=wide))


def _joined(terms: list[LowRank], place: tuple[int, int, int], rank: int | None) -> Pair:
    """The sum of products on rows ``[first, first + height)`` of a parameter."""
    first, height, width = place
    rows, cols = range(height), range(width)
    here = Region("", rows, cols, "", range(first, first + height), cols)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for term in terms:
        moved = move_low_rank(term, here)
        if moved is None:
            continue
        left, right = moved.left.read().to("cpu") * moved.scale, moved.right.read().to("cpu")
        wide = torch.zeros(height, left.shape[1], dtype=torch.float64)
        wide[moved.row : moved.row + left.shape[0]] = left
        flat = torch.zeros(right.shape[0], width, dtype=torch.float64)
        flat[:, moved.col : moved.col + right.shape[1]] = right
        pairs.append((wide, flat))
    if not pairs:
        return _nothing(height, width)
    left, right = joined(pairs)
    if rank is None or left.shape[1] <= rank:
        return Pair(left, right)
    return Pair(*nearest(left, right, rank))


def _needed(product: Product) -> int:
    """Peak bytes of finding a parameter's factors, and of holding them."""
    parameter, rank = product.parameter, product.rank
    height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
    held = 8 * parameter.matrices * rank * (height + width)
    if product.exact:
        # Single factors, side by side, rounded, and what LAPACK makes of those of one matrix.
        return 6 * held
    return (
        bytes_needed((height, width), rank) + _BLOCKS + (2 * held if parameter.matrices > 1 else 0)
    )


@dataclass(frozen=True)
class _Merged:
    """The merged values of the base's tensors, as the merge would store them."""

    merged: MergedCheckpoint

    def values(self, source: Source, first: int, count: int) -> torch.Tensor:
        return self.merged.read_elements(self.merged.plans[source.name], first, count)


@dataclass(frozen=True)
class _Deltas:
    """What the merge adds to the base's tensors, float64."""

    merged: MergedCheckpoint

    def piece(self, part: Patch) -> torch.Tensor:
        return stored_block(self, part.base, part)

    def values(self, source: Source, first: int, count: int) -> torch.Tensor:
        plan = self.merged.plans[source.name]
        change = plan.touched_by
        if change is None:
            return torch.zeros(count, dtype=torch.float64)
        target = torch.empty(count, dtype=torch.float64)
        base = None
        if not _is_additive(change):
            base = self.merged.reader.values(source, first, count)
        self.merged.apply(change, plan.origin, base, target, first)
        if base is not None:
            target -= base.to(torch.float64)
        if not torch.isfinite(target).all():
            raise BadInput(
                f"The base holds NaN or infinity in {source.name}.",
                why="No adapter leads from such a value.",
                hint="Check the base; it may be damaged or overflown.",
            )
        return target


def _is_additive(change: Change) -> bool:
    """Whether the change is the same whatever the base holds, so that it need not be read."""
    return not change.whole_rows and all(
        isinstance(step, LowRank | Added | Factored)
        # Kinds of their own may look at the base.
        or (type(step) is Combined and step.additive and not step.joint.replacements)
        for step in change.steps
    )
