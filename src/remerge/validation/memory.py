"""Whether a model fits into memory, asked before any work."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from remerge.errors import BadInput
from remerge.merging.plan import Plan

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ELSEWHERE = "Take a machine with more memory."


def check_memory(plan: Plan, dtype: str, device: str = "cpu") -> None:
    """Refuse a model that does not fit, before any work; on a device of its own memory, its driver
    says so."""
    if device == "cpu":
        hint = "--dtype bfloat16 takes half of it." if dtype == "float32" else _ELSEWHERE
        check_elements(sum(tensor.elements for tensor in plan.tensors.values()), dtype, hint)


def check_elements(elements: int, dtype: str = "float32", hint: str = _ELSEWHERE) -> None:
    """The same for a number of weights."""
    needed, free = _BYTES[dtype] * elements, available()
    if free is not None and needed > free:
        raise BadInput(
            f"The model takes {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of memory "
            "are free.",
            hint=hint,
        )


def available() -> int | None:
    """Bytes of memory that are free for use; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
