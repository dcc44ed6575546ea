"""Run a command in a process of its own from a cold cache; how long it took, how much it held.

This module imports nothing heavy: a child's peak memory counts from its parent's at the fork.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Measured:
    """One run: seconds, the seconds more until all of it is on disk, peak resident bytes."""

    wall: float
    sync: float
    user: float
    system: float
    peak: int

    @property
    def total(self) -> float:
        return self.wall + self.sync


class Failed(Exception):
    """A contestant exited with an error."""


def run(command: Sequence[str], out: Path | None = None) -> Measured:
    """Run to the end, then sync the file system of `out`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}\n{errors.decode(errors='replace')[-2000:]}")
    start = time.perf_counter()
    if out is not None:
        subprocess.run(["sync", "-f", str(out)], check=True)
    sync = time.perf_counter() - start if out is not None else 0.0
    return Measured(wall, sync, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)


def remove(directory: Path) -> None:
    """Delete an output and wait until the disk has heard of it."""
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run(["sync", "-f", str(directory.parent)], check=True)


def cool(directory: Path) -> str:
    """Push the files of a directory out of the page cache; how, in words."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    try:
        DROP.write_text("3")
    except OSError:
        return "posix_fadvise(DONTNEED) on every input; drop_caches was not writable"
    return "posix_fadvise(DONTNEED) on every input, and drop_caches"


def available_memory() -> int:
    """Bytes of RAM that a new process may take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def file_system(directory: Path) -> str:
    """The kind of file system that holds a directory."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        inside = mount == "/" or str(directory.resolve()).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind
