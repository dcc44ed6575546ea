"""A page's steps run one after the other, as its reader would: in one shell, in a directory that
has the examples, by a user who never ran remerge before."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.exempt import exempt
from tests.docs.masks import difference
from tests.docs.page import Step, steps_of

ROOT = Path(__file__).parents[2]
# The port that pages name; a run takes a free one.
_PORT = "8000"
_DONE = "remerge-page-step-done"
_LIMIT = 400
# What a shell says of a program that SIGTERM or SIGINT ended, and of one that ended by itself then.
_ENDED = {0, 130, 143, -signal.SIGTERM, -signal.SIGINT}


class PageIsWrong(AssertionError):
    """A step of a page does not do what the page says."""


def run_page(page: Path, place: Path, engines: Path | None = None) -> None:
    """Run every step of ``page``, in the empty directory ``place``.

    ``engines`` is where engines of tests are installed. Raises `PageIsWrong`, naming the line.
    """
    steps = steps_of(page)
    with session(place, engines) as shell:
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            asks_code = after is not None and after.text == "echo $?"
            try:
                shell.run(step, any_code=asks_code)
            except PageIsWrong as error:
                raise PageIsWrong(f"{page.name}:{step.line}: {step.text}\n{error}") from None
        shell.stop_servers()


@contextmanager
def session(place: Path, engines: Path | None) -> Generator[Session]:
    work, home = place / "work", place / "home"
    shutil.copytree(ROOT / "examples", work / "examples")
    for name in ("scripts", "benchmarks"):
        (work / name).symlink_to(ROOT / name)
    cache = home / ".cache" / "remerge" / "engines"
    cache.mkdir(parents=True)
    for found in engines.iterdir() if engines is not None and engines.exists() else ():
        if not found.name.startswith("."):
            (cache / found.name).symlink_to(found)
    shell = Session(work, home)
    try:
        yield shell
    finally:
        shell.close()


@dataclass
class Session:
    work: Path
    home: Path
    port: str = ""
    servers: list[tuple[Step, subprocess.Popen[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = str(found.getsockname()[1])
        kept = {k: os.environ[k] for k in ("TMPDIR", "LD_LIBRARY_PATH") if k in os.environ}
        self.environment = kept | {
            "HOME": str(self.home),
            # The environment that the tests run in comes first: its python, its remerge.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, step: Step, *, any_code: bool = False) -> None:
        """One step. Raises `PageIsWrong` if its exit code is not 0 (unless the page asks for it
        next) or what it prints is not what the page shows."""
        if step.kind == "python":
            self._finished(Step(step.line, f"python - <<'PAGE'\n{step.text}\nPAGE"), any_code)
        elif step.kind != "command":
            (self.work / step.kind).write_text(step.text)
        elif (reason := exempt(step.text)) is not None:
            reason.instead(step.text, self.work)
        elif re.match(r"remerge serve\b", step.text) and "--print" not in step.text:
            self._start(step)
        else:
            self._finished(step, any_code)

    def _finished(self, step: Step, any_code: bool) -> None:
        code, printed = self._ask(step.text.replace(_PORT, self.port))
        printed = printed.replace(self.port, _PORT)
        if code != 0 and not any_code:
            raise PageIsWrong(f"ended with exit code {code}:\n{printed}")
        if step.shown and (told := difference(step.shown, printed)):
            raise PageIsWrong(f"{told}\n\nall of it:\n{printed}")

    def _ask(self, command: str) -> tuple[int, str]:
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        # In braces it runs in this shell, and what it reads is not the commands after it.
        text = (
            f"{{ {command}\n}} < /dev/null\n__code=$?; echo; echo {_DONE} $__code; (exit $__code)\n"
        )
        self.shell.stdin.write(text.encode())
        self.shell.stdin.flush()
        printed, until = b"", time.monotonic() + _LIMIT
        while (found := re.search(rf"\n{_DONE} (\d+)\n".encode(), printed)) is None:
            if not select.select([self.shell.stdout], [], [], max(0, until - time.monotonic()))[0]:
                raise PageIsWrong(f"still runs after {_LIMIT} s:\n{printed.decode()}")
            read = os.read(self.shell.stdout.fileno(), 1 << 16)
            if not read:
                raise PageIsWrong(f"ended the shell:\n{printed.decode()}")
            printed += read
        return int(found[1]), printed[: found.start()].decode()

    def _start(self, step: Step) -> None:
        """A server: it goes on while the page's next commands run, and ends before another."""
        self.stop_servers()
        log = self.work.parent / "server.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                ["bash", "--norc", "-c", f"exec {step.text.replace(_PORT, self.port)}"],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.servers.append((step, server))
        shown = tuple(line for line in step.shown if line != "^C")
        until, told = time.monotonic() + _LIMIT, "it was never ready"
        while time.monotonic() < until and server.poll() is None:
            printed = log.read_text().replace(self.port, _PORT)
            if (told := difference((*shown, "[more]"), printed)) is None:
                return
            time.sleep(0.2)
        printed = log.read_text().replace(self.port, _PORT)
        raise PageIsWrong(f"{told}\nits code: {server.poll()}; all of it:\n{printed}")

    def stop_servers(self) -> None:
        """End the servers by SIGTERM. Raises `PageIsWrong` for one that does not end well, or that
        leaves a process."""
        for step, server in self.servers:
            if server.poll() is not None:
                raise PageIsWrong(f"{step.text}: ended by itself, with {server.returncode}")
            server.terminate()
            try:
                code = server.wait(60)
            except subprocess.TimeoutExpired:
                raise PageIsWrong(f"{step.text}: lives 60 s after SIGTERM") from None
            if code not in _ENDED:
                raise PageIsWrong(f"{step.text}: SIGTERM ended it with {code}")
            if _alive(server.pid):
                raise PageIsWrong(f"{step.text}: left processes behind")
        self.servers.clear()

    def close(self) -> None:
        """End whatever still runs."""
        for process in (self.shell, *(server for _, server in self.servers)):
            if _alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
