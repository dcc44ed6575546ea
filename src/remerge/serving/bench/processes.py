"""What an engine's processes took: processor time and memory.

Linux tells both; elsewhere processor time and memory are None, and only the clock on the wall is
left.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from remerge.engines.machine import has_nvidia

_EVERY = 0.2


@dataclass
class Tree:
    """An engine's processes, as ``pids`` tells them now; ``memory`` and ``gpu_memory`` are the most
    bytes that `weigh` found, None where the system does not tell them."""

    pids: Callable[[], Sequence[int]]
    memory: int | None = None
    gpu_memory: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def seconds(self) -> dict[int, float] | None:
        """Processor time of every process until now, to the nanosecond, ended threads included."""
        if sys.platform != "linux":
            return None
        told = {pid: _seconds(pid) for pid in self.pids()}
        return {pid: seconds for pid, seconds in told.items() if seconds is not None}

    def weigh(self) -> None:
        """Look how much memory they take: each page's share, where several processes map it."""
        pids = self.pids()
        found = [nbytes for nbytes in map(_proportional, pids) if nbytes is not None]
        gpu = _of_gpu(frozenset(pids))
        with self._lock:
            if found:
                self.memory = max(self.memory or 0, sum(found))
            if gpu is not None:
                self.gpu_memory = max(self.gpu_memory or 0, gpu)

    @contextmanager
    def weighing(self) -> Generator[None]:
        """Weigh it all the while: not where time is measured, as it holds the processes up."""
        end = threading.Event()

        def work() -> None:
            while not end.wait(_EVERY):
                self.weigh()

        thread = threading.Thread(target=work, name="remerge-weigh", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.weigh()


def taken(before: dict[int, float] | None, after: dict[int, float] | None) -> float | None:
    """Processor seconds between two readings of `Tree.seconds`."""
    if before is None or after is None:
        return None
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def _seconds(pid: int) -> float | None:
    """POSIX's clock of another process: /proc counts in hundredths of a second."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        return None
    with suppress(OSError):
        return time.clock_gettime(clock.value)
    return None


def _proportional(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return None


def _of_gpu(pids: frozenset[int]) -> int | None:
    if not has_nvidia():
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, check=True, capture_output=True, text=True, timeout=10)
        rows = [line.split(",") for line in done.stdout.splitlines()]
        mine = [
            int(row[1]) * 2**20
            for row in rows
            if len(row) == 2
            and row[0].strip().isdecimal()
            and row[1].strip().isdecimal()
            and int(row[0]) in pids
        ]
        return sum(mine) if mine else None
    return None
