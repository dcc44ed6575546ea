"""A child process that merges and is killed at its n-th step on the file system.

A step is any call that changes the disk. SIGKILL runs no handler: what the disk holds then is what
the next run finds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

STEPS = ("pwritev", "ftruncate", "fsync", "rename", "unlink", "rmdir", "mkdir")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["remerge.api", "tests.outputs.killing"])


def run(inputs: Path, out: Path, kill_at: int | None, **options: Any) -> int:
    """Merge in a child that dies before its ``kill_at``-th step; the exit code, -9 when killed."""
    child = _processes.Process(target=_merge, args=(inputs, out, kill_at, options))
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def _merge(inputs: Path, out: Path, kill_at: int | None, options: dict[str, Any]) -> None:
    import remerge
    from remerge.outputs import directory

    left = kill_at if kill_at is not None else -1

    def deadly(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, deadly(getattr(os, name)))
    directory._exchange = deadly(directory._exchange)
    try:
        adapters = options.pop("adapters", inputs / "adapter")
        remerge.merge(inputs / "base", adapters, out, threads=2, **options)
    except remerge.RemergeError as error:
        os._exit(error.exit_code)
