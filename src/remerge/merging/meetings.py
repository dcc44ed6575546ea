"""What was measured of two adapters, module by module, and the figures of all modules together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remerge.merging.directions import Meeting


@dataclass(frozen=True)
class Signs:
    """Sums over the elements that both deltas change: how many there are and how many have
    opposite signs, and the same weighted by ``|a b|``."""

    common: float = 0.0
    against: float = 0.0
    weight: float = 0.0
    weight_against: float = 0.0

    def __add__(self, other: Signs) -> Signs:
        return Signs(
            self.common + other.common,
            self.against + other.against,
            self.weight + other.weight,
            self.weight_against + other.weight_against,
        )


@dataclass(frozen=True)
class Module:
    """Two adapters, ``one`` and ``other``, in a tensor or a part of it that both change.

    ``norms`` are those of their deltas, ``product`` is the inner product. ``inputs`` and
    ``outputs`` compare what they read and write; None where one of them has no factors.
    """

    one: int
    other: int
    name: str
    norms: tuple[float, float]
    product: float
    signs: Signs
    meeting: Meeting | None = None
    turned: bool = False
    chance: float = 0.0

    @property
    def size(self) -> float:
        """What the module counts for among others."""
        return self.norms[0] * self.norms[1]

    @property
    def cosine(self) -> float:
        return self.product / self.size

    @property
    def shared(self) -> float:
        """How much of both deltas lies along common inputs and outputs, 0 to 1: the geometric mean
        of the two sides. Where there are no factors, no less than the cosine."""
        if self.meeting is None:
            return abs(self.cosine)
        return math.sqrt(self.meeting.rows.shared * self.meeting.columns.shared)

    @property
    def conflict(self) -> float:
        """What of ``shared`` is not agreement: 0 for equal deltas, 1 for opposite ones."""
        return self.shared * (1.0 - self.cosine) / 2.0


@dataclass(frozen=True)
class Pair:
    """Two adapters: their norms over all comparable tensors, and the modules that both change."""

    one: int
    other: int
    norms: tuple[float, float]
    modules: tuple[Module, ...]


@dataclass(frozen=True)
class Figures:
    """How two deltas lie to each other in one module, or in all; shares are 0 to 1, and None where
    nothing was to be measured.

    Over several modules each counts by the product of its two norms. ``cosine``, ``shared`` and
    ``conflict`` are parts of the whole: modules that one adapter alone changes count as zero.
    Overlaps and the largest cosines are of the principal angles between what the two read
    (``input``) and write (``output``). ``norm_ratio`` is that of the first delta to the second.
    """

    cosine: float | None
    shared: float | None
    shared_by_chance: float | None
    conflict: float | None
    input_overlap: float | None
    output_overlap: float | None
    largest_input_cosine: float | None
    largest_output_cosine: float | None
    sign_conflicts: float | None
    sign_conflicts_weighted: float | None
    norm_ratio: float | None


def figures(modules: Sequence[Module], norms: tuple[float, float]) -> Figures:
    """The figures of these modules of one pair, whose deltas have these norms altogether."""
    whole = norms[0] * norms[1]
    if not whole:
        return Figures(*[None] * 11)
    signs = sum((module.signs for module in modules), Signs())
    inputs = [(m.size, *_sides(m, m.meeting)[0]) for m in modules if m.meeting is not None]
    outputs = [(m.size, *_sides(m, m.meeting)[1]) for m in modules if m.meeting is not None]
    return Figures(
        cosine=math.fsum(m.product for m in modules) / whole,
        shared=math.fsum(m.size * m.shared for m in modules) / whole,
        shared_by_chance=math.fsum(m.size * m.chance for m in modules) / whole,
        conflict=math.fsum(m.size * m.conflict for m in modules) / whole,
        input_overlap=_mean((size, overlap) for size, overlap, _ in inputs),
        output_overlap=_mean((size, overlap) for size, overlap, _ in outputs),
        largest_input_cosine=max((largest for _, _, largest in inputs), default=None),
        largest_output_cosine=max((largest for _, _, largest in outputs), default=None),
        sign_conflicts=signs.against / signs.common if signs.common else None,
        sign_conflicts_weighted=signs.weight_against / signs.weight if signs.weight else None,
        norm_ratio=norms[0] / norms[1],
    )


def _sides(module: Module, meeting: Meeting) -> tuple[tuple[float, float], tuple[float, float]]:
    """Overlap and largest cosine of inputs and of outputs."""
    rows = meeting.rows.overlap, meeting.rows.largest
    columns = meeting.columns.overlap, meeting.columns.largest
    return (columns, rows) if module.turned else (rows, columns)


def _mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    pairs = list(weighted)
    total = math.fsum(weight for weight, _ in pairs)
    return math.fsum(weight * value for weight, value in pairs) / total if total else None
