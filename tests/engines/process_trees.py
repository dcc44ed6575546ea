"""The memory of a process and all below it: proportional set size, as the kernel tells it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread


@dataclass
class Watched:
    peak: int = 0


def tree(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found


def tree_bytes(pid: int) -> int:
    total = 0
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


@contextmanager
def watched(pid: int) -> Generator[Watched]:
    """The peak of the tree's memory, sampled ten times a second."""
    found, stop = Watched(), Event()

    def watch() -> None:
        while not stop.wait(0.1):
            found.peak = max(found.peak, tree_bytes(pid))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
