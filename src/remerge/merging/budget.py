"""The memory budget: what a run may hold at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

DEFAULT = 2**30
SMALLEST = 2**29
# What Python, torch and the widened factors take, measured; the rest of the budget is buffers.
RESIDENT = 420 * 2**20
_CHUNK = 2**24
_SMALLEST_CHUNK = 2**20


@dataclass(frozen=True)
class Resources:
    """How much of the machine a run may take; changes no byte of the result."""

    threads: int
    chunk: int

    @classmethod
    def of(cls, max_memory: int, threads: int | None = None) -> Resources:
        """Two threads a processor, and one: while some wait for the disk, others compute."""
        count = threads or min(2 * (os.cpu_count() or 1) + 1, 16)
        room = max(max_memory - RESIDENT, 0)
        while count > 1 and room // (3 * count) < _SMALLEST_CHUNK:
            count -= 1
        chunk = max(_SMALLEST_CHUNK, min(_CHUNK, room // (3 * count)))
        return cls(count, chunk - chunk % _SMALLEST_CHUNK)


def forecast(max_memory: int, threads: int | None, *, relaid: bool) -> int:
    """Peak resident bytes to expect of a run with this budget, adapter apart.

    ``relaid`` says that some output file has another layout than the base's, which takes a second
    buffer a thread.
    """
    resources = Resources.of(max_memory, threads)
    buffers = 2 if relaid else 1
    return RESIDENT + buffers * resources.threads * resources.chunk
