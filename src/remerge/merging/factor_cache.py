"""The adapter's factors in float64, kept while they are in use."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch

from remerge.adapters.deltas import Factor

# Widened factors that are kept: those of the tensors at hand, of eight adapters too. Tensors come
# one after the other, so that more would only be kept, not used again.
_FACTOR_BUDGET = 2**28
# Both factors of a few tensors stay however large they are: without them every tile would read
# them again.
_LEAST_FACTORS = 6


class FactorCache:
    """Widened adapter factors, the most recently used of them, for all threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: OrderedDict[int, tuple[Factor, torch.Tensor]] = OrderedDict()
        self._lock = Lock()
        self._loading = Lock()

    def load(self, factor: Factor) -> torch.Tensor:
        found = self._find(factor)
        if found is not None:
            return found
        # One at a time: threads that need the same factor would each hold a copy.
        with self._loading:
            found = self._find(factor)
            if found is not None:
                return found
            values = factor.read().to(self._device, torch.float64)
            with self._lock:
                self._held[id(factor)] = (factor, values)
                while len(self._held) > _LEAST_FACTORS and self._size() > _FACTOR_BUDGET:
                    self._held.popitem(last=False)
            return values

    def _find(self, factor: Factor) -> torch.Tensor | None:
        with self._lock:
            found = self._held.get(id(factor))
            if found is None:
                return None
            self._held.move_to_end(id(factor))
            return found[1]

    def _size(self) -> int:
        return sum(factor.nbytes for factor, _ in self._held.values())
