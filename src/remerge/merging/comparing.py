"""Comparing two checkpoints parameter by parameter, in a few threads and bounded memory.

Every parameter is one job on one torch thread, so that neither the number of threads nor the
memory changes a bit of what comes out; results come in the order of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.regions import Region
from remerge.errors import BadInput, UsageError
from remerge.merging.budget import RESIDENT
from remerge.merging.difference import Difference, assembled
from remerge.merging.extraction import LowRankFit, Wanted, bytes_needed, enough, fit
from remerge.merging.extraction_plan import ExtractionPlan, Parameter
from remerge.merging.ordered import Room, give_back, in_order
from remerge.merging.patches import BLOCK, Patch, patches_of, window
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.reading import Reader, Source

# What a run holds beside its matrices: transformers and LAPACK come on top of what a merge needs.
HELD = RESIDENT + 2**25
# Below this a thread's own share of the memory allocator's slack would not fit.
_A_THREAD = 2**27

# Told of each parameter done: its name.
Told = Callable[[Parameter], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a parameter: ``fits`` (float32 factors) where it changed and can have them,
    one a matrix; ``squared_norm`` is that of the whole difference."""

    parameter: Parameter
    changed: bool
    squared_norm: float = 0.0
    fits: tuple[LowRankFit, ...] = ()

    @property
    def explained_squares(self) -> float:
        return sum(float(fit.squares.sum()) for fit in self.fits)


@dataclass(frozen=True)
class Comparison:
    """Two opened models, what is wanted of their difference, and the room for finding it."""

    plan: ExtractionPlan
    base: Reader
    merged: Reader
    wanted: Wanted
    max_memory: int
    threads: int

    @property
    def room(self) -> int:
        return self.max_memory - HELD

    def check_memory(self) -> None:
        """Refuse, before any work, a matrix whose sketch does not fit; raises `UsageError`."""
        for parameter in self.plan.parameters:
            needed = 0 if parameter.form == "whole" else _sketch(parameter, self.wanted.rank)
            if needed > self.room:
                total = needed + HELD
                raise UsageError(
                    f"{parameter.name} {list(parameter.shape)} needs about "
                    f"{total / 2**30:.2f} GiB at rank {self.wanted.rank}, over the budget of "
                    f"{self.max_memory / 2**30:.2f} GiB.",
                    hint=f"Run again with --max-memory {-(-total // 2**30)}GiB, or a lower --rank.",
                )

    def outcomes(self, parameters: Sequence[Parameter], told: Told) -> Iterator[Outcome]:
        """Compare parameters, and decompose the differences of those that can have factors."""
        room = Room(self.room)
        threads = max(1, min(self.threads, self.room // _A_THREAD))

        def job(parameter: Parameter) -> Outcome:
            if parameter.form == "whole":
                with room.taken(min(32 * BLOCK, self.room)):
                    return Outcome(parameter, self._changed(parameter))
            give_back()
            sketch = _sketch(parameter, self.wanted.rank)
            held = 4 * math.prod(parameter.view) // parameter.matrices
            keep = sketch + held <= self.room // threads
            with room.taken(sketch + held if keep else sketch):
                return self._decomposed(parameter, keep)

        for outcome in in_order(parameters, job, threads):
            told(outcome.parameter)
            yield outcome

    def untied(self) -> Iterator[str]:
        """Second names of a parameter of the base whose values are their own in MERGED."""
        names, tensors = self.plan.merged.names, self.plan.merged.tensors
        found = {parameter.name: parameter for parameter in self.plan.parameters}
        for name, twin in self.plan.tied.items():
            sides = names.regions(name), names.regions(twin)
            if twin not in found or not all(sides) or _tensors(sides[0]) == _tensors(sides[1]):
                continue
            kind = found[twin].kind
            patches = patches_of(name, (sides[1], tensors), (sides[0], tensors), kind)
            apart = Difference(name, self.merged, self.merged, found[twin].merged_view, patches)
            if apart.measure().changed:
                yield name

    def moved_outside(self) -> Iterator[str]:
        """Stored tensors of no parameter of the model that differ between the two."""
        for name in self.plan.outside:
            one, other = self.plan.base.tensors[name], self.plan.merged.tensors[name]
            if not _equal((self.base, one), (self.merged, other)):
                yield name

    def values(self, parameter: Parameter) -> tuple[torch.dtype, Iterator[torch.Tensor]]:
        """The merged side of a parameter as stored, its rows in blocks.

        The blocks raise `BadInput` where a value is not finite.
        """
        tensors = self.plan.merged.tensors
        regions = parameter.merged
        patches = patches_of(parameter.name, (regions, tensors), (regions, tensors), parameter.kind)
        rows, columns = parameter.merged_view
        height = max(1, BLOCK // max(columns, 1))

        def blocks() -> Iterator[torch.Tensor]:
            for first in range(0, rows, height):
                part = range(first, min(first + height, rows))
                block = assembled(self.merged, window(patches, part), (len(part), columns))
                if not torch.isfinite(block).all():
                    raise BadInput(f"{parameter.name} holds NaN or infinity in the merged model.")
                yield block

        first = self.merged.values(tensors[regions[0].tensor], 0, 1)
        return first.dtype, blocks()

    def _patches(self, parameter: Parameter) -> tuple[Patch, ...]:
        return patches_of(
            parameter.name,
            (parameter.base, self.plan.base.tensors),
            (parameter.merged, self.plan.merged.tensors),
            parameter.kind,
        )

    def _changed(self, parameter: Parameter) -> bool:
        if parameter.resized:
            return True
        found = self._difference(parameter.name, parameter.view, self._patches(parameter), False)
        return found.measure().changed

    def _decomposed(self, parameter: Parameter, keep: bool) -> Outcome:
        """Factors of each of the parameter's matrices, all of one rank."""
        height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
        patches = self._patches(parameter)
        wanted, fits, changed, total = self.wanted, list[LowRankFit](), False, 0.0
        for number in range(parameter.matrices):
            name, part = parameter.name, patches
            if parameter.form == "stack":
                name = f"{name}[{number}]"
                part = window(patches, range(number * height, (number + 1) * height))
                wanted = Wanted(self.wanted.rank)
            difference = self._difference(name, (height, width), part, keep)
            extent = difference.measure()
            changed, total = changed or extent.changed, total + extent.squared
            if extent.changed or parameter.form == "stack":
                fits.append(_narrow(fit(difference, wanted, extent.squared)))
        if not changed:
            return Outcome(parameter, False)
        if parameter.form == "stack":
            energy = self.wanted.energy
            rank = max(enough(fit.squares, fit.squared_norm, energy) for fit in fits)
            fits = [fit.cut(rank) for fit in fits]
        return Outcome(parameter, True, total, tuple(fits))

    def _difference(
        self, name: str, shape: tuple[int, int], patches: Sequence[Patch], keep: bool
    ) -> Difference:
        return Difference(name, self.base, self.merged, shape, patches, keep)


def _narrow(found: LowRankFit) -> LowRankFit:
    left, right = found.left.to(torch.float32), found.right.to(torch.float32)
    return LowRankFit(left, right, found.squares, found.squared_norm)


def _sketch(parameter: Parameter, rank: int) -> int:
    """Peak bytes of a parameter's decomposition, and of its factors where there are many."""
    height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
    stack = 12 * parameter.matrices * min(rank, height, width) * (height + width)
    return bytes_needed((height, width), rank) + (stack if parameter.form == "stack" else 0)


def _tensors(regions: Sequence[Region]) -> set[str]:
    return {region.tensor for region in regions}


def _equal(one: tuple[Reader, Source], other: tuple[Reader, Source]) -> bool:
    """Whether two stored tensors hold the same: bytes, or values where one is quantised."""
    first, second = one[1], other[1]
    if (first.dtype, tuple(first.shape)) != (second.dtype, tuple(second.shape)):
        return False
    if not isinstance(first, StoredTensor) or not isinstance(second, StoredTensor):
        count = math.prod(first.shape)
        return all(
            torch.equal(*(r.values(s, at, min(BLOCK, count - at)) for r, s in (one, other)))
            for at in range(0, count, BLOCK)
        )
    return all(
        _raw(one[0], first, at) == _raw(other[0], second, at)
        for at in range(0, first.nbytes, BLOCK)
    )


def _raw(reader: Reader, tensor: StoredTensor, at: int) -> bytearray:
    buffer = bytearray(min(BLOCK, tensor.nbytes - at))
    reader.file(tensor.shard).read_into(memoryview(buffer), tensor.start + at, len(buffer))
    return buffer
