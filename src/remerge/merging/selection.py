"""The k largest of more values than memory holds, exactly.

Values are compared as float32: float64 sums of different tiles may differ in their last bits, and
a selection must not. Of equal values the earlier ones come first, so that exactly k are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

# Keys of candidates that are held at once, of one search.
_HELD = 2**18
_LARGEST = 0x7F800000  # the key of infinity
# A key's 31 bits in two parts. Bins of the high ones are so narrow (1/256 of a value) that of 100
# million values those of one bin can nearly always be held.
_LOW_BITS = 15
_COARSE, _FINE = 2**16, 2**_LOW_BITS
# Keys that are counted at once: many more than there are bins to add up.
_AT_ONCE = 2**18

# Blocks of values (rows, n) in order, each with the position of its first column.
Blocks = Callable[[], Iterator[tuple[int, torch.Tensor]]]

Keys = npt.NDArray[np.int32]

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

    def keep(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """These values, which stand from position ``first`` on, those that are not among the
        largest set to zero in place."""
        if self.is_everything:
            return values
        if self.is_nothing:
            return values.zero_()
        bound = self._bound(first, first + values.numel())
        if bound is None:
            return values.masked_fill_(self._left_out(values, first), 0.0)
        return values if bound < 0 else shrink(values, bound)

    def drop(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """The values, which are finite, those that are among the largest set to zero in place."""
        if self.is_nothing:
            return values
        return values.sub_(self.keep(values.clone(), first))

    def _bound(self, first: int, stop: int) -> float | None:
        """The largest magnitude that is left out from ``first`` to ``stop``, negative if none is;
        None where some of the values equal to ``key`` are taken there and some are not."""
        if stop - 1 <= self.last:
            return last_of(self.key - 1)
        return last_of(self.key) if first > self.last else None

    def _left_out(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """Which values are not taken, where some of those equal to ``key`` are."""
        keys = keys_of(values)
        early = torch.arange(keys.numel(), device=keys.device) <= self.last - first
        return (keys < self.key) | ((keys == self.key) & ~early.view(keys.shape))


EVERYTHING = Cut(-1, -1)
NOTHING = Cut(_LARGEST + 1, -1)


def keys_of(values: torch.Tensor) -> torch.Tensor:
    """Integers (int32) that order magnitudes as float32 does."""
    return values.to(torch.float32, copy=True).abs_().view(torch.int32)


@lru_cache  # asked for again with every tile
def last_of(key: int) -> float:
    """The largest float64 that has this key, or a smaller one; negative if there is none."""
    if key < 0:
        return -1.0
    if key >= _LARGEST:
        return math.inf
    here, above = np.array([key, key + 1], np.int32).view(np.float32).astype(np.float64)
    # float32 goes on after its largest number, where rounding is concerned.
    middle = (here + min(above, 2.0**128)) / 2
    # A value in the middle rounds to the even one.
    return float(middle) if key % 2 == 0 else math.nextafter(middle, 0.0)


def shrink(values: torch.Tensor, bound: float) -> torch.Tensor:
    """The values, magnitudes up to ``bound`` set to zero in place: without a mask, whose branches
    cost more than all else where it is random."""
    return torch.ops.aten.hardshrink.out(values, bound, out=values)


@dataclass
class _Search:
    """Where a cut lies so far. The first pass tells in which coarse bin (the high bits of a key);
    the second holds what lies there, or counts the low bits of too many; the third finds the place
    among equals. ``left`` is how many are still to be taken, from there down."""

    count: Count
    left: int = 0
    coarse: int | None = None
    key: int | None = None
    few: bool = False
    found: Cut | None = None
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_COARSE, np.int64))
    # Whole buffers: small pieces that stay between large ones would keep memory from being reused.
    waiting: Keys = field(default_factory=lambda: np.empty(_AT_ONCE, np.int32))
    filled: int = 0
    keys: Keys = field(default_factory=lambda: np.empty(0, np.int32))
    places: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def see(self, keys: Keys, first: int) -> None:
        if self.key is not None:
            self._count_equal(keys, first, self.key)
        elif self.coarse is None:
            self._wait(keys)
        else:
            # As unsigned numbers those below the bin are the largest: one comparison tells.
            start, size = _bin(self.coarse)
            low = (keys - start).view(np.uint32)
            where = np.flatnonzero(low < size)
            if self.few:
                self._hold(keys[where], where + first)
            else:
                self.bins += np.bincount(low[where], minlength=_FINE)

    def _wait(self, keys: Keys) -> None:
        """Gather keys until there are enough to be counted."""
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            if self.filled + len(part) > _AT_ONCE:
                self._count_waiting()
            self.waiting[self.filled : self.filled + len(part)] = part
            self.filled += len(part)

    def _count_waiting(self) -> None:
        waiting = self.waiting[: self.filled]
        coarse = torch.as_tensor(waiting >> _LOW_BITS)
        counted = torch.bincount(coarse, minlength=_COARSE).numpy()
        self.bins += counted
        if counted[0]:
            self.bins[0] -= len(waiting) - np.count_nonzero(waiting)
        self.filled = 0

    def _hold(self, keys: Keys, places: npt.NDArray[np.int64]) -> None:
        stop = self.filled + len(keys)
        self.keys[self.filled : stop], self.places[self.filled : stop] = keys, places
        self.filled = stop

    def _count_equal(self, keys: Keys, first: int, key: int) -> None:
        where = np.flatnonzero(keys == key)
        if 0 < self.left <= len(where):
            self.found = Cut(key, first + int(where[self.left - 1]))
        self.left -= len(where)

    def close(self) -> None:
        """After a pass: the cut, or a narrower place for it."""
        if self.few:
            order = np.argsort(-self.keys, kind="stable")
            last = order[self.left - 1]
            self.found = Cut(int(self.keys[last]), int(self.places[last]))
        elif self.coarse is None:
            self._choose_coarse()
        elif self.key is None:
            chosen, _ = self._descend()
            self.key = _bin(self.coarse)[0] + chosen

    def _choose_coarse(self) -> None:
        self._count_waiting()
        total = int(self.bins.sum())
        self.left = self.count(total)
        if self.left <= 0:
            self.found = NOTHING
        elif total <= self.left:
            self.found = Cut(0, -1)
        else:
            self.coarse, inside = self._descend()
            self.few = inside <= _HELD
            if self.few:
                self.keys = np.empty(inside, np.int32)
                self.places = np.empty(inside, np.int64)
            self.bins = np.zeros(_FINE, np.int64)

    def _descend(self) -> tuple[int, int]:
        """The bin in which the last value to be taken lies, and how many lie in it; those of the
        bins above are taken."""
        # Counted from the largest: the first bin with which there are enough.
        reached = np.cumsum(self.bins[::-1])
        place = int(np.argmax(reached >= self.left))
        chosen = len(self.bins) - 1 - place
        inside = int(self.bins[chosen])
        self.left -= int(reached[place]) - inside
        return chosen, inside


def _bin(coarse: int) -> tuple[int, int]:
    """The first key of a coarse bin and how many there are; zero, which is never taken, is none."""
    start = max(coarse << _LOW_BITS, 1)
    return start, ((coarse + 1) << _LOW_BITS) - start


def largest(blocks: Blocks, wanted: Sequence[tuple[int, Count]]) -> list[Cut]:
    """For each pair of a row and a count the cut that takes so many of the row's largest values.

    Values of zero are worth no place: where fewer others are left, the cut takes all of those. One
    pass bounds where a cut lies by a histogram, another finds it among the candidates; more only
    where more of them fall into one bin than are held at once, and never more than three.
    """
    searches = [(row, _Search(count)) for row, count in wanted]
    while any(search.found is None for _, search in searches):
        for first, values in blocks():
            keys: dict[int, Keys] = {}
            for row, search in searches:
                if search.found is None:
                    if row not in keys:
                        keys[row] = keys_of(values[row]).cpu().numpy()
                    search.see(keys[row], first)
        for _, search in searches:
            if search.found is None:
                search.close()
    return [search.found or NOTHING for _, search in searches]
