"""Where a merge's processor time goes: `python benchmarks/profiling.py BASE ADAPTER OUT`.

Wraps the few functions that do the work and sums their thread time, so the shares add up to the
whole whatever the threads wait for.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from typing import Any

import torch

import remerge
from remerge.adapters import deltas
from remerge.merging import kernel, local, merged
from remerge.sources import storage

seconds: dict[str, float] = defaultdict(float)


def watch(owner: Any, name: str, label: str) -> None:
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[label] += time.thread_time() - started

    setattr(owner, name, timed)


def main() -> None:
    watch(storage.InputFile, "read_into", "read")
    watch(storage.OutputFile, "write", "write")
    watch(local._Turns, "update", "SHA-256")
    watch(merged, "merge_elements", "kernel")
    watch(deltas.LowRank, "apply", "kernel: s * B @ A")
    watch(kernel, "_is_finite", "kernel: finite?")
    watch(kernel, "_fragile", "kernel: -0.0, finite?")
    # Starting torch is not the merge's.
    torch.zeros(1).sum()
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    remerge.merge(*sys.argv[1:4])
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(f"{'wall':24}{wall:7.2f} s")
    print(f"{'processor':24}{user + system:7.2f} s ({system:.2f} in the kernel of the system)")
    for label, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{label:24}{spent:7.2f} s")


if __name__ == "__main__":
    main()
