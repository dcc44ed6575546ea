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
from threading import Event, Thread

DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Measured:
    """One run: seconds, the seconds more until all of it is on disk, peak resident bytes of one
    process and of all together (seen ten times a second), bytes read from and written to disk."""

    wall: float
    sync: float
    user: float
    system: float
    peak: int
    tree_peak: int
    read: int
    written: int

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
    watch = _Watch(process.pid)
    watch.start()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    tree_peak = watch.end()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}\n{errors.decode(errors='replace')[-2000:]}")
    start = time.perf_counter()
    if out is not None:
        subprocess.run(["sync", "-f", str(out)], check=True)
    sync = time.perf_counter() - start if out is not None else 0.0
    return Measured(
        wall,
        sync,
        usage.ru_utime,
        usage.ru_stime,
        usage.ru_maxrss * 1024,
        max(tree_peak, usage.ru_maxrss * 1024),
        usage.ru_inblock * 512,
        usage.ru_oublock * 512,
    )


class _Watch(Thread):
    """Looks at what a process and its children hold together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = Event()
        self._peak = 0

    def run(self) -> None:
        while not self._done.wait(0.1):
            self._peak = max(self._peak, _resident(self._pid))

    def end(self) -> int:
        self._done.set()
        self.join()
        return self._peak


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(_resident(int(child)) for child in children)


def size(path: Path) -> int:
    """Bytes of a file, or of all in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


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
