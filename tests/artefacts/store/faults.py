"""A child process that changes a store and dies, or finds the disk failing, at its n-th step.

A step is any call that changes the disk: what `os` has of them, and every write that reaches the
file below Python's buffers. SIGKILL runs no handler, and a write that it meets is half done. The
child is a fork of a process that has imported everything, so that hundreds of them cost seconds.
"""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

STEPS = (
    "pwrite",
    "pwritev",
    "write",
    "ftruncate",
    "truncate",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "link",
    "symlink",
    "unlink",
    "remove",
    "rmdir",
    "mkdir",
    "chmod",
    "fchmod",
    "copy_file_range",
    "sendfile",
)
# What a child says of a failure that is no RemergeError.
FAULT = 99

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["remerge.api", "remerge.artefacts.store.adding", "tests.artefacts.store.faults"]
)


class Steps:
    """Counts what changes the disk; at one of them the process dies, or the call fails."""

    def __init__(self, kill_at: int | None, fail_at: int | None, error: int, lasting: bool):
        self.count = 0
        self.kill_at, self.fail_at = kill_at, fail_at
        self.error, self.lasting = error, lasting

    def step(self, frees: bool = False) -> bool:
        """Count one more; whether it is the last one. A full disk lets files be deleted."""
        self.count += 1
        if self.fail_at is not None and (
            self.count == self.fail_at or (self.lasting and self.count > self.fail_at and not frees)
        ):
            raise OSError(self.error, os.strerror(self.error))
        return self.count == self.kill_at

    def wrapped(self, name: str, function: Any) -> Any:
        if name in ("fsync", "fdatasync"):
            # A kill loses nothing that was written, synced or not: waiting for the disk tells
            # nothing, and is most of the time.
            function = _synced
        frees = name in ("unlink", "rmdir", "remove", "ftruncate", "truncate")

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.step(frees):
                _die()
            return function(*args, **kwargs)

        return call

    def install(self) -> None:
        steps = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if steps.step():
                    super().write(bytes(data)[: len(data) // 2])
                    _die()
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                if steps.step(frees=True):
                    _die()
                return super().truncate(size)

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "b" not in mode or not set(mode) & set("wax+"):
                return original(file, mode, *args, **kwargs)
            raw = Raw(file, mode.replace("b", ""))
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        original = io.open
        io.open = builtins.open = opened  # type: ignore[assignment]
        for name in STEPS:
            setattr(os, name, self.wrapped(name, getattr(os, name)))


def run(
    root: Path,
    method: str,
    *args: Any,
    kill_at: int | None = None,
    fail_at: int | None = None,
    error: int = errno.ENOSPC,
    lasting: bool = False,
    **kwargs: Any,
) -> int:
    """Call a method of `remerge.Store` in a child; the exit code, -9 when killed, `FAULT` for an
    exception that a user would see as a fault of remerge."""
    env = {k: v for k, v in os.environ.items() if k.startswith("XDG_")}
    steps = (kill_at, fail_at, error, lasting)
    child = start(root, method, args, kwargs, env, steps)
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def start(
    root: Path,
    method: str,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    steps: tuple[int | None, int | None, int, bool] = (None, None, 0, False),
    go: Any = None,
) -> Any:
    """The child, started; with ``go`` it waits for that barrier first."""
    env = env or {k: v for k, v in os.environ.items() if k.startswith("XDG_")}
    child = _processes.Process(
        target=_child, args=(root, method, args, kwargs or {}, env, steps, go)
    )
    child.start()
    return child


def barrier(parties: int) -> Any:
    """What children started together wait for."""
    return _processes.Barrier(parties)


def _child(
    root: Path,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    env: dict[str, str],
    steps: tuple[int | None, int | None, int, bool],
    go: Any,
) -> NoReturn:
    import remerge

    os.environ.update(env)
    store = remerge.Store(root)
    if go is not None:
        go.wait(60)
    Steps(*steps).install()
    try:
        getattr(store, method)(*args, **kwargs)
    except remerge.RemergeError as failure:
        os._exit(failure.exit_code)
    except OSError as failure:
        # The command line says these as any other failure.
        os._exit(75 if failure.errno in (errno.ENOSPC, errno.EIO) else _fault())
    except BaseException:
        os._exit(_fault())
    os._exit(0)


def _fault() -> int:
    traceback.print_exc(file=sys.stderr)
    sys.stderr.flush()
    return FAULT


def _synced(descriptor: int) -> None:
    pass


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
