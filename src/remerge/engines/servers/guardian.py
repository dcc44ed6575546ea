"""Between remerge and an engine: starts the engine in a session of its own, passes signals on, and
leaves nothing of it behind. Run as a file, by remerge's interpreter.

    guardian.py DESCRIPTOR PROGRAM [ARGUMENT ...]

When the pipe of that descriptor closes, as it does however remerge ends, the engine is asked to end
and then killed, at once if `AT_ONCE` is in it; with all that it started: also what became of its
children in sessions of their own, since Linux gives orphans to this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_SET_DEATH_SIGNAL, _TAKE_ORPHANS = 1, 36
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
AT_ONCE = b"!"
# Seconds that an engine has to end by itself after remerge is gone, and its other processes after
# the first.
_GRACE, _AFTER_FIRST = 3.0, 2.0


def main() -> int:
    pipe, words = int(sys.argv[1]), sys.argv[2:]
    # None of the engine's processes may hold it open.
    os.set_inheritable(pipe, False)
    waking = _woken_by_children()
    # Until there is an engine, they end this process; a handler, since an ignored one is inherited.
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_TAKE_ORPHANS, 1)
    # Signals that come between the two would find an engine that nobody knows.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        engine = subprocess.Popen(words, start_new_session=True, preexec_fn=_as_engine)
    except OSError as error:
        print(f"error: {words[0]}: {error.strerror}", flush=True)
        return 127
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: _send([engine.pid], number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    at_once = False
    while engine.poll() is None:
        ready, _, _ = select.select([pipe, waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
        if pipe in ready:
            if os.read(pipe, 1) == AT_ONCE:
                engine.kill()
                at_once = True
            else:
                _end(engine)
    if not at_once:
        _wait_for_all(_AFTER_FIRST)
    _kill_all(engine.pid)
    return engine.returncode if engine.returncode >= 0 else 128 - engine.returncode


def _woken_by_children() -> int:
    """A descriptor that becomes readable when a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reading


def _as_engine() -> None:
    """In the child before it becomes the engine: it ends with this process, and hears signals."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _end(engine: subprocess.Popen[bytes]) -> None:
    engine.terminate()
    try:
        engine.wait(_GRACE)
    except subprocess.TimeoutExpired:
        engine.kill()


def _kill_all(group: int) -> None:
    """All that descends from here; where orphans are not given to it, the engine's group."""
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    # What they start while they are killed is found the next time.
    for _ in range(100):
        left = descendants(os.getpid())
        _send(left, signal.SIGKILL)
        if not left or _wait_for_all(0.05):
            return


def _wait_for_all(seconds: float) -> bool:
    """Whether all processes below this one have ended within a time."""
    deadline = time.monotonic() + seconds
    while True:
        # Orphans that ended here would stay in the table.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not descendants(os.getpid()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def _send(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def descendants(process: int) -> list[int]:
    """Processes that a process started, and those that these did, as /proc tells; where there is
    none (macOS), none."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = list[int](), [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
