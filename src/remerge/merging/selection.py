"""The k largest of more values than memory holds, exactly.

Values are compared as float32: float64 sums of different tiles may differ in their last bits, and
a selection must not. Of equal values the earlier ones come first, so that exactly k are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

# Keys of candidates that are held at once, of one search.
_HELD = 2**18
_LARGEST = 0x7F800000  # the key of infinity
# So many that of 100 million values those of one bin can be held.
_BINS = 2**16

# Blocks of non-negative values (rows, n) in order, each with the position of its first column.
Blocks = Callable[[], Iterator[tuple[int, torch.Tensor]]]

# How many values are to be taken, of so many that are not zero.
Count = Callable[[int], int]


@dataclass(frozen=True)
class Cut:
    """Takes values above ``key``, and of those equal to it the ones up to position ``last``."""

    key: int
    last: int

    @property
    def is_everything(self) -> bool:
        return self.key < 0

    @property
    def is_nothing(self) -> bool:
        return self.key > _LARGEST

    def taken(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """Which of these non-negative values, from position ``first`` on, are among the largest."""
        keys = keys_of(values)
        above = keys > self.key
        equal = keys == self.key
        if self.last >= first and bool(equal.any()):
            flat = equal.reshape(-1)
            early = torch.arange(flat.numel(), device=flat.device) <= self.last - first
            above |= (flat & early).reshape(above.shape)
        return above


EVERYTHING = Cut(-1, -1)
NOTHING = Cut(_LARGEST + 1, -1)


def keys_of(values: torch.Tensor) -> torch.Tensor:
    """Integers (int32) that order non-negative values as float32 does."""
    return values.to(torch.float32).view(torch.int32)


@dataclass
class _Search:
    """Where a cut lies so far: at the ``left``-th largest of the keys ``[low, high]``; ``left`` is
    known once the values that are not zero are counted."""

    count: Count
    left: int = -1
    low: int = 1
    high: int = _LARGEST
    few: bool = False
    found: Cut | None = None
    bins: torch.Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64))
    held: list[tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=list[tuple[torch.Tensor, torch.Tensor]]
    )

    def see(self, keys: torch.Tensor, first: int) -> None:
        if self.low == self.high:
            self._count_equal(keys, first)
            return
        inside = (keys >= self.low) & (keys <= self.high)
        if self.few:
            where = inside.nonzero().flatten()
            self.held.append((keys[where].cpu(), where.cpu() + first))
        else:
            bins = (keys[inside] - self.low) // self._width
            self.bins += torch.bincount(bins, minlength=_BINS).cpu()

    def _count_equal(self, keys: torch.Tensor, first: int) -> None:
        where = (keys == self.low).nonzero().flatten()
        if self.left <= len(where):
            self.found = Cut(self.low, first + int(where[self.left - 1]))
        self.left -= len(where)

    def close(self) -> None:
        """After a pass: the cut, or a narrower place for it."""
        if self.few:
            keys, places = (torch.cat(parts) for parts in zip(*self.held, strict=True))
            order = torch.argsort(keys, descending=True, stable=True)
            last = order[self.left - 1]
            self.found = Cut(int(keys[last]), int(places[last]))
        elif self.low != self.high:
            self._narrow()

    def _narrow(self) -> None:
        # Counted from the largest: the first bin with which there are enough.
        reached = self.bins.flip(0).cumsum(0)
        total = int(reached[-1])
        if self.left < 0:
            self.left = self.count(total)
        if self.left <= 0 or total <= self.left:
            self.found = NOTHING if self.left <= 0 else Cut(self.low - 1, -1)
            return
        place = int((reached >= self.left).to(torch.int8).argmax())
        chosen, width = _BINS - 1 - place, self._width
        start, inside = self.low + chosen * width, int(self.bins[chosen])
        if int(reached[place]) == self.left:
            self.found = Cut(start - 1, -1)
            return
        self.left -= int(reached[place]) - inside
        self.low, self.high = start, min(start + width - 1, self.high)
        self.few = inside <= _HELD and self.low != self.high
        self.bins.zero_()

    @property
    def _width(self) -> int:
        return -(-(self.high - self.low + 1) // _BINS)


def largest(blocks: Blocks, wanted: Sequence[tuple[int, Count]]) -> list[Cut]:
    """For each pair of a row and a count the cut that takes so many of the row's largest values.

    Values of zero are worth no place: where fewer others are left, the cut takes all of those. One
    pass bounds where a cut lies by a histogram, another finds it among the candidates; more only
    where more of them fall into one bin of 65,536 than are held at once.
    """
    searches = [(row, _Search(count)) for row, count in wanted]
    while any(search.found is None for _, search in searches):
        for first, values in blocks():
            keys: dict[int, torch.Tensor] = {}
            for row, search in searches:
                if search.found is None:
                    if row not in keys:
                        keys[row] = keys_of(values[row])
                    search.see(keys[row], first)
        for _, search in searches:
            if search.found is None:
                search.close()
    return [search.found or NOTHING for _, search in searches]
