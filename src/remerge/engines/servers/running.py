"""An engine's server as a process: the one place that starts them.

    with running(command, address, log=Path("server.log"), timeout=600) as server:
        ...  # it answers at address.url

Whatever ends the block, or remerge itself, no process of the engine's is left (`guardian.py`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from remerge.engines.servers.guardian import AT_ONCE, descendants
from remerge.engines.servers.server import Address, Command
from remerge.errors import BadInput, RemergeError, TryAgain, UsageError
from remerge.sources.storage import cannot_write

_GUARDIAN = Path(__file__).with_name("guardian.py")
# A shell's paths are not the engine's.
_HIDDEN = ("PYTHONPATH", "PYTHONHOME")
_LAST_LINES = 12
_PORT_TAKEN = re.compile(r"address already in use|Errno 98\b|couldn't bind", re.IGNORECASE)
_ERROR = re.compile(r"^\S*(Error|Exception)\b|(?<!\w)error:", re.IGNORECASE)
_TOO_LARGE = re.compile(
    r"out of memory|OutOfMemory|failed to allocate|bad_alloc|not enough memory|MemoryError|"
    r"less than (?:desired|requested)|No available memory for the cache blocks|"
    r"larger than the maximum number of tokens",
    re.IGNORECASE,
)


class Running:
    """A server that was started: its process and where it writes."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, log: Path) -> None:
        self._process, self._pipe, self.log = process, pipe, log

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def processes(self) -> list[int]:
        """All processes of the engine, the one that was started first; Linux tells, others not."""
        return descendants(self._process.pid)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code once it has ended, 128 + n after signal n; None while it runs on."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def send(self, signal_number: int) -> None:
        """Pass a signal on to the engine."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal_number)

    def stop(self, grace: float = 10.0) -> int:
        """End it: asked first, killed after ``grace`` seconds. Gives the exit code."""
        try:
            if self.is_alive:
                self.send(signal.SIGTERM)
                if self.wait(grace) is None:
                    os.write(self._pipe, AT_ONCE)
        finally:
            self._let_go()
        return self._process.wait()

    def _let_go(self) -> None:
        """Without this the guardian ends the engine by itself."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def last_lines(self, count: int = _LAST_LINES) -> str:
        """The end of what the engine wrote."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2**16))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


@contextmanager
def running(
    command: Command,
    address: Address,
    *,
    log: Path,
    timeout: float = 600.0,
    health: str = "/health",
) -> Generator[Running]:
    """A server that answers, until the block ends. Raises as `start` and `wait_healthy`."""
    server = start(command, address, log=log)
    try:
        wait_healthy(server, address, timeout=timeout, health=health)
        yield server
    finally:
        server.stop()


def start(command: Command, address: Address, *, log: Path) -> Running:
    """Start a server in a session of its own; what it writes goes to the end of ``log``.

    The caller calls `Running.stop`. Raises `TryAgain` for a port that is taken, `UsageError` for a
    program or an address that is none, and what `cannot_write` gives for the log.
    """
    if shutil.which(command.words[0]) is None:
        raise UsageError(f"{command.words[0]} is no program that can be run.")
    check_free(address)
    kept = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    # Python's output would wait in a buffer while people look into the log.
    variables = {**kept, "PYTHONUNBUFFERED": "1", **command.variables}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise cannot_write(log, error) from error
    reading, writing = os.pipe()
    try:
        with file:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_GUARDIAN), str(reading), *command.words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(reading,),
                env=variables,
                start_new_session=True,
            )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Running(process, writing, log)


def wait_healthy(
    server: Running, address: Address, *, timeout: float, health: str = "/health"
) -> float:
    """Wait until it answers; the seconds that took. It is not stopped when it fails.

    Raises `TryAgain` when it ends for want of memory or of its port, or when time runs out,
    `BadInput` when it ends for another reason: each with the end of the log.
    """
    began = time.monotonic()
    while not _answers(f"{address.url}{health}"):
        code = server.wait(0.1)
        if code is not None:
            raise ended(server, code)
        if time.monotonic() - began > timeout:
            raise TryAgain(
                f"The server did not answer within {timeout:g} s.",
                why=f"It wrote last: {server.last_lines(3)}",
                hint=f"Its log is {server.log}. --startup-timeout waits longer.",
            )
    if not server.is_alive:
        # Somebody else answers there.
        raise ended(server, server.wait() or 0)
    return time.monotonic() - began


def ended(server: Running, code: int) -> RemergeError:
    """What to say of a server that has ended by itself."""
    said = server.last_lines(200)
    why = f"It wrote last: {_complaint(said)}"
    log = f"Its log is {server.log}."
    if _PORT_TAKEN.search(said):
        return TryAgain("The server found its port taken.", why=why, hint="Choose another --port.")
    if _TOO_LARGE.search(said) or code == 128 + signal.SIGKILL:
        return TryAgain(
            f"The server ended ({code}), probably for want of memory.",
            why=why,
            hint=f"Lower --context or --max-num-seqs, or give it more --memory. {log}",
        )
    return BadInput(f"The server ended ({code}).", why=why, hint=log)


def _complaint(said: str) -> str:
    """What of an engine's last lines says why: lines that name an error, else the very last."""
    lines = said.splitlines()
    found = [line.strip() for line in lines if _ERROR.search(line)]
    # An engine of several processes repeats itself, and says last what the user sees of it.
    return " | ".join(list(dict.fromkeys(found))[-3:] or lines[-3:]) or "nothing"


def check_free(address: Address) -> None:
    """Raises `TryAgain` where something listens already, `UsageError` for a host that is none."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{address.host!r} is no address of this machine.") from error
    family, kind, protocol, _, place = found[0]
    with socket.socket(family, kind, protocol) as test:
        # As servers do: a port whose last connections are being closed is free.
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind(place)
        except OSError as error:
            raise _cannot_listen(address, error) from error


def _cannot_listen(address: Address, error: OSError) -> RemergeError:
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"{address.host!r} is no address of this machine.",
            hint="--host 127.0.0.1 listens for this machine alone, 0.0.0.0 on every interface.",
        )
    what = f"{address.host}:{address.port} cannot be listened on: {error.strerror}."
    if error.errno == errno.EACCES:
        return UsageError(what, hint="Choose a --port of 1024 or above.")
    return TryAgain(what, why="Another server may be running there.", hint="Choose another --port.")


def _answers(url: str) -> bool:
    """Whether an address answers 200; proxies of the environment have no business with it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as reply:
            return reply.status == 200
    except (OSError, ValueError, urllib.error.URLError):
        return False
    except Exception as error:  # half an answer, of a server that is just starting
        if type(error).__module__ == "http.client":
            return False
        raise
