"""A command line that has its imports behind it: one process, forked for every run.

Importing torch takes longer than refusing an input, and there are many inputs. The fork runs the
same `main` with the same arguments; `tests/cli` runs it from a cold start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class Warm:
    """The process, and the way to ask it for a run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # huggingface_hub reads these when it is imported.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp()},
            cwd=Path(__file__).resolve().parents[2],
        )

    def run(self, **request: Any) -> tuple[int, int]:
        """Exit code and peak resident bytes of a run, as `_serve` does it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["peak"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def _serve() -> None:
    import huggingface_hub  # noqa: F401 - to have it imported
    import rich.progress  # noqa: F401

    import remerge.api  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        print(json.dumps(_await(child, request["seconds"])), flush=True)


def _become(request: dict[str, Any]) -> None:
    """The command line, with its own streams, environment, directory and limits."""
    for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o600), number)
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    limit = request["cpu_seconds"] + int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    sys.argv = ["remerge", *request["arguments"]]
    from remerge.cli import main

    code = 1
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _await(child: int, seconds: float) -> dict[str, int]:
    end = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {"code": code, "peak": usage.ru_maxrss * 1024}
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    _serve()
