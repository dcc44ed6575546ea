"""What this machine has: processor, memory, GPUs, as its system tells, without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi names it; memory in bytes."""

    name: str
    memory: int
    driver: str


def has_nvidia() -> bool:
    """Whether an NVIDIA GPU can be reached: what nvidia-smi itself opens is there."""
    wsl = Path("/dev/dxg").exists() and shutil.which("nvidia-smi") is not None
    return wsl or Path("/dev/nvidiactl").exists()


def gpus() -> list[Gpu]:
    """NVIDIA GPUs in nvidia-smi's order; none where it is not there or does not answer."""
    fields = "--query-gpu=name,memory.total,driver_version"
    try:
        done = subprocess.run(
            ["nvidia-smi", fields, "--format=csv,noheader,nounits"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [
        Gpu(row[0], int(row[1]) * 2**20 if row[1].isdecimal() else 0, row[2])
        for row in rows
        if len(row) == 3
    ]


@cache
def instructions() -> frozenset[str] | None:
    """What the processor can, by Linux's names (``avx2``, ``avx512f``); None where it is not
    said."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def processor() -> str:
    """The processor's name, or its architecture where the system gives none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return os.uname().machine


def cores() -> int:
    """Processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory: the machine's, or a container's limit where that is lower."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / limit).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found = min(found, int(text))
    return found
