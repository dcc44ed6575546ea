"""Work done in an engine's environment: a request in, lines of JSON out.

`call` is the caller's side, `answer` the engine's. A line is ``{"done", "total", "tensor"}``,
``{"note"}``, ``{"part"}``, ``{"result"}`` or ``{"error"}``; what libraries print goes to standard
error.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from remerge import errors
from remerge.errors import BadInput, RemergeError, TryAgain

Report = Callable[[int, int, str], None]
Note = Callable[[str], None]
Part = Callable[[Mapping[str, Any]], None]
_SET_DEATH_SIGNAL = 1


class Teller:
    """What work tells while it goes on: how far it is, (`note`) what the user should know before it
    ends, and (`part`) what of the result is there already."""

    def __init__(self, say: Callable[[Mapping[str, Any]], None]) -> None:
        self._say = say

    def __call__(self, done: int, total: int, tensor: str) -> None:
        self._say({"done": done, "total": total, "tensor": tensor})

    def note(self, text: str) -> None:
        self._say({"note": text})

    def part(self, document: Mapping[str, Any]) -> None:
        self._say({"part": dict(document)})


Work = Callable[[Mapping[str, Any], Teller], Mapping[str, Any]]

_LACKING = re.compile(r"ModuleNotFoundError: No module named '([^']*)'")
_KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RemergeError)
}


def call(
    python: Path,
    module: str,
    request: Mapping[str, Any],
    report: Report,
    *,
    note: Note = lambda text: None,
    part: Part = lambda document: None,
    place: Path | None = None,
) -> dict[str, Any]:
    """Run ``module`` in an engine's environment and give its result; raises what it raised, and
    `BadInput` where the environment lacks a package.

    It runs in the directory ``place``, for engines that write where they stand.
    """
    with (
        _surroundings() as variables,
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            # -P: what lies in the working directory is not the engine's.
            [str(python), "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=variables,
            cwd=place,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            # An engine that dies before it has read its request says why on standard error.
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dict(request)))
                process.stdin.close()
            for line in process.stdout:
                message = _message(line)
                if message is None:
                    continue
                if "result" in message:
                    return message["result"]
                if "error" in message:
                    raise _error(message["error"])
                if "note" in message:
                    note(message["note"])
                    continue
                if "part" in message:
                    part(message["part"])
                    continue
                report(message["done"], message["total"], message["tensor"])
        except BaseException:
            process.terminate()
            raise
        process.wait()
        said.seek(0)
        last = (said.read().strip().splitlines() or ["nothing"])[-1]
        if process.returncode < 0:
            raise TryAgain(
                f"{module} was killed by signal {-process.returncode}.",
                why="Often for want of memory.",
            )
        lacking = _LACKING.match(last)
        if lacking:
            raise BadInput(
                f"{python} has no package for {lacking[1]!r}, which the engine needs there.",
                hint="Install it there, or let remerge engines install make an environment.",
            )
        raise RemergeError(
            f"{module} ended with {process.returncode}; it said last: {last.rstrip('.')}.",
            why="Its environment may be broken, or this is a fault.",
            hint="remerge engines check tells.",
        )


@contextmanager
def _surroundings() -> Generator[dict[str, str]]:
    """An engine's environment variables: no paths of the shell's, and this very remerge before all
    packages, so that both sides are one version and an interpreter need not have it."""
    hidden = ("PYTHONPATH", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    with tempfile.TemporaryDirectory(prefix="remerge-") as place:
        # A folder of its own: beside remerge lie packages that are not the engine's.
        (Path(place) / "remerge").symlink_to(Path(__file__).resolve().parents[1])
        yield {**kept, "PYTHONPATH": place}


def answer(work: Work) -> None:
    """Read the request, do the work, and say what became of it."""
    _end_with_caller()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        request: Mapping[str, Any] = json.load(sys.stdin)
        result = work(request, Teller(say))
        say({"result": dict(result)})
    except RemergeError as error:
        kind = type(error).__name__
        say({"error": {"kind": kind, "what": error.what, "why": error.why, "hint": error.hint}})
    except (OSError, MemoryError) as error:
        what = f"The engine failed: {str(error) or 'out of memory'}."
        say({"error": {"kind": TryAgain.__name__, "what": what, "why": None, "hint": None}})


def _end_with_caller() -> None:
    """Have Linux end this process with the one that called it: what it writes would be nobody's."""
    if sys.platform == "linux":
        caller = os.getppid()
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)


def _message(line: str) -> dict[str, Any] | None:
    """A line of the protocol; None for what a library printed before the engine could take over."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _error(told: Mapping[str, Any]) -> RemergeError:
    kind = _KINDS.get(told["kind"], RemergeError)
    return kind(told["what"], why=told["why"], hint=told["hint"])
