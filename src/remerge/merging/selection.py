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
# A key's 31 bits in two parts. Bins of the high ones are so narrow (1/256 of a value) that of 100
# million values those of one bin can nearly always be held.
_LOW_BITS = 15
_COARSE, _FINE = 2**16, 2**_LOW_BITS
# Keys that are counted at once: many more than there are bins to add up.
_AT_ONCE = 2**18

# Blocks of values (rows, n) in order, each with the position of its first column.
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
        """Which of these values, by their magnitudes and from position ``first`` on, are among the
        largest."""
        return ~self.left_out(values, first)

    def left_out(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """Which of these values are not."""
        keys = keys_of(values)
        if first + keys.numel() - 1 <= self.last:
            return keys < self.key
        below = keys <= self.key
        if self.last >= first:
            early = torch.arange(keys.numel(), device=keys.device) <= self.last - first
            below &= (keys != self.key) | ~early.view(keys.shape)
        return below


EVERYTHING = Cut(-1, -1)
NOTHING = Cut(_LARGEST + 1, -1)


def keys_of(values: torch.Tensor) -> torch.Tensor:
    """Integers (int32) that order magnitudes as float32 does."""
    return values.to(torch.float32, copy=True).abs_().view(torch.int32)


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
    zeros: int = 0
    bins: torch.Tensor = field(default_factory=lambda: torch.zeros(_COARSE, dtype=torch.int64))
    # Whole buffers: small pieces that stay between large ones would keep memory from being reused.
    waiting: torch.Tensor = field(default_factory=lambda: torch.empty(_AT_ONCE, dtype=torch.int32))
    filled: int = 0
    keys: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    places: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def see(self, keys: torch.Tensor, first: int) -> None:
        if self.key is not None:
            self._count_equal(keys, first, self.key)
        elif self.coarse is None:
            self._wait(keys >> _LOW_BITS)
            self.zeros += keys.numel() - int(torch.count_nonzero(keys))
        else:
            where = ((keys >> _LOW_BITS) == self.coarse).nonzero().flatten()
            inside = keys[where]
            if self.few:
                self._hold(inside, where + first)
            else:
                low = inside & (_FINE - 1)
                self.bins += torch.bincount(low, minlength=_FINE).cpu()

    def _wait(self, coarse: torch.Tensor) -> None:
        """Gather coarse keys until there are enough to be counted."""
        for first in range(0, len(coarse), _AT_ONCE):
            part = coarse[first : first + _AT_ONCE]
            if self.filled + len(part) > _AT_ONCE:
                self._count_waiting()
            self.waiting[self.filled : self.filled + len(part)] = part
            self.filled += len(part)

    def _count_waiting(self) -> None:
        self.bins += torch.bincount(self.waiting[: self.filled], minlength=_COARSE)
        self.filled = 0

    def _hold(self, keys: torch.Tensor, places: torch.Tensor) -> None:
        stop = self.filled + len(keys)
        self.keys[self.filled : stop], self.places[self.filled : stop] = keys, places
        self.filled = stop

    def _count_equal(self, keys: torch.Tensor, first: int, key: int) -> None:
        where = (keys == key).nonzero().flatten()
        if 0 < self.left <= len(where):
            self.found = Cut(key, first + int(where[self.left - 1]))
        self.left -= len(where)

    def close(self) -> None:
        """After a pass: the cut, or a narrower place for it."""
        if self.few:
            order = torch.argsort(self.keys, descending=True, stable=True)
            last = order[self.left - 1]
            self.found = Cut(int(self.keys[last]), int(self.places[last]))
        elif self.coarse is None:
            self._choose_coarse()
        elif self.key is None:
            chosen, _ = self._descend()
            self.key = (self.coarse << _LOW_BITS) + chosen

    def _choose_coarse(self) -> None:
        self._count_waiting()
        self.bins[0] -= self.zeros
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
                self.keys = torch.empty(inside, dtype=torch.int32)
                self.places = torch.empty(inside, dtype=torch.int64)
            self.bins = torch.zeros(_FINE, dtype=torch.int64)

    def _descend(self) -> tuple[int, int]:
        """The bin in which the last value to be taken lies, and how many lie in it; those of the
        bins above are taken."""
        # Counted from the largest: the first bin with which there are enough.
        reached = self.bins.flip(0).cumsum(0)
        place = int((reached >= self.left).to(torch.int8).argmax())
        chosen = len(self.bins) - 1 - place
        inside = int(self.bins[chosen])
        self.left -= int(reached[place]) - inside
        return chosen, inside


def largest(blocks: Blocks, wanted: Sequence[tuple[int, Count]]) -> list[Cut]:
    """For each pair of a row and a count the cut that takes so many of the row's largest values.

    Values of zero are worth no place: where fewer others are left, the cut takes all of those. One
    pass bounds where a cut lies by a histogram, another finds it among the candidates; more only
    where more of them fall into one bin than are held at once, and never more than three.
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
