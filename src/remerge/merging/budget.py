"""The memory budget: what a run may hold at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT = 2**30
SMALLEST = 2**29
# What Python, torch and the widened factors take, measured; the rest of the budget is buffers.
RESIDENT = 420 * 2**20
_CHUNK = 2**24
_SMALLEST_CHUNK = 2**20
# What a thread takes to unpack codes, or to pack them again.
_CODES = 128 * 2**20
# What a thread takes to combine full deltas.
_DELTAS = 64 * 2**20


@dataclass(frozen=True)
class Resources:
    """How much of the machine a run may take; changes no byte of the result."""

    threads: int
    chunk: int

    @classmethod
    def of(
        cls,
        max_memory: int,
        threads: int | None = None,
        *,
        quantised: bool = False,
        combines: bool = False,
    ) -> Resources:
        """Two threads a processor, and one: while some wait for the disk, others compute.

        ``quantised`` says that the base is, and has to be decoded; ``combines`` that full deltas of
        several adapters are combined: then the disk waits for the processors.
        """
        processors = os.cpu_count() or 1
        count = threads or min(processors if combines else 2 * processors + 1, 16)
        room, other = max(max_memory - RESIDENT, 0), _beside(quantised, combines)
        while count > 1 and (room // count - other) // 3 < _SMALLEST_CHUNK:
            count -= 1
        chunk = max(_SMALLEST_CHUNK, min(_CHUNK, (room // count - other) // 3))
        return cls(count, chunk - chunk % _SMALLEST_CHUNK)


def _beside(quantised: bool, combines: bool) -> int:
    """What a thread takes beside the buffers of its chunk."""
    return _CODES * quantised + _DELTAS * combines


def forecast(
    max_memory: int, threads: int | None, *, quantised: bool, combines: bool = False
) -> int:
    """Peak resident bytes to expect of a run with this budget, adapter apart."""
    resources = Resources.of(max_memory, threads, quantised=quantised, combines=combines)
    return RESIDENT + resources.threads * (resources.chunk + _beside(quantised, combines))


def peak_memory() -> int:
    """Peak resident bytes of this process so far."""
    try:
        with Path("/proc/self/status").open() as stream:
            line = next(line for line in stream if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
