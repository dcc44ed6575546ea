"""Memory that tiles free is used again, without the system's help."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "reuse":
    from remerge.cli.memory import reuse_freed_memory
    reuse_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    tiles = [np.ones(3 << 17) for _ in range(4)]
    del tiles
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_what_tiles_free_is_used_again() -> None:
    def faults(mode: str) -> int:
        words = [sys.executable, "-c", _PROGRAM, mode]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert faults("reuse") < faults("leave") / 4
