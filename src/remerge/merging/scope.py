"""Over what a method measures: one tensor, or all tensors that adapters change together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from remerge.merging.combined import Combined

T = TypeVar("T")


@dataclass
class Scope:
    """The combined tensors of a merge, in the order of their names, and what was measured over
    all of them: at the first call, for all that ask later. ``largest_rank`` is that of all factors
    that were combined, complete once every tensor's steps are made."""

    members: list[Combined] = field(default_factory=list["Combined"])
    largest_rank: int = 0
    _found: dict[object, Any] = field(default_factory=dict[object, Any])
    _lock: Any = field(default_factory=Lock)

    def once(self, key: object, measure: Callable[[], T]) -> T:
        """What ``measure`` gives, called once for each key; other threads wait for it."""
        with self._lock:
            if key not in self._found:
                self._found[key] = measure()
            return self._found[key]
