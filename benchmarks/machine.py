"""What the machine can do at best, as JSON: the limits against which a merge is measured.

python benchmarks/machine.py
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable

import torch

THREADS = 2
SIDE = 2048
BYTES = 1 << 28


def float64_gflops(repeats: int = 5) -> float:
    """The best rate of a float64 product of two square matrices, on two threads."""
    torch.set_num_threads(THREADS)
    left, right = torch.rand(2, SIDE, SIDE, dtype=torch.float64)
    product = torch.empty_like(left)
    torch.mm(left, right, out=product)
    seconds = [_seconds(lambda: torch.mm(left, right, out=product)) for _ in range(repeats)]
    return 2 * SIDE**3 / min(seconds) / 1e9


def sha256_gigabytes(repeats: int = 3) -> float:
    """The best rate of SHA-256 on one core, in GB/s."""
    data = bytes(BYTES)
    return BYTES / min(_seconds(lambda: hashlib.sha256(data)) for _ in range(repeats)) / 1e9


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps({"float64_gflops": float64_gflops(), "sha256_gb_s": sha256_gigabytes()}))
