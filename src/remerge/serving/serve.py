"""A prepared server in the foreground: started, asked once, and there until it is told to end.

Nothing heavy is imported here: this process lives as long as the server does.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remerge.engines.endpoint import Endpoint
from remerge.engines.servers.registry import server_of
from remerge.engines.servers.running import Running, check_free, ended, start, wait_healthy
from remerge.engines.servers.server import Address, Command, Served, Server
from remerge.errors import RemergeError
from remerge.serving.kept import place_for
from remerge.serving.sizing.asked import Sized
from remerge.serving.smoke import Smoke, smoke

# Seconds that an engine has to end by itself once it was told to; before it serves anybody, there
# is nothing to finish.
_GRACE, _UNBORN = 10.0, 2.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Prepared:
    """A server that can be started: ``chat`` says whether the model has a chat template."""

    engine: str
    served: Served
    sizes: Sized
    address: Address
    command: Command
    chat: bool
    key: str | None = None

    @property
    def server(self) -> Server:
        """The engine as a server."""
        return server_of(self.engine)

    @property
    def model(self) -> str:
        """The name to ask for: the adapter's where there is one."""
        return self.served.adapters[0].name if self.served.adapters else self.served.name

    @property
    def names(self) -> tuple[str, ...]:
        """All names that clients may ask for."""
        adapters = tuple(adapter.name for adapter in self.served.adapters)
        # llama.cpp has its adapter in every answer.
        return (
            adapters if adapters and self.engine == "llama.cpp" else (self.served.name, *adapters)
        )


@dataclass(frozen=True)
class Up:
    """A server that answers: seconds until it did, and its first answer."""

    seconds: float
    smoke: Smoke
    pid: int
    log: Path


def serve(
    prepared: Prepared,
    told: Callable[[Up], None],
    *,
    timeout: float = 600.0,
    prompt: str | None = None,
    show: bool = False,
) -> RemergeError | None:
    """Start it, ask it one question, tell of it, and stay until it ends.

    SIGINT, SIGTERM and SIGHUP are passed on to it once it answers; before, they end it and this.
    ``show`` copies what the engine writes to standard error. Gives None where it ended because it
    was told to, else what to say of its end. Raises `TryAgain` and `BadInput` where it does not
    come up, with the end of its log.
    """
    # Before the log is begun anew: it may be that of the server that is there.
    check_free(prepared.address)
    log = _log(prepared)
    command = prepared.command
    if prepared.key is not None and prepared.server.key_variable is not None:
        secret = {prepared.server.key_variable: prepared.key}
        command = replace(command, variables={**command.variables, **secret})
    with hangup_as_termination():
        running, grace = start(command, prepared.address, log=log), _UNBORN
        with _followed(log, show=show):
            try:
                seconds = wait_healthy(
                    running, prepared.address, timeout=timeout, health=prepared.server.health
                )
                grace = _GRACE
                first = _ask(prepared, running, prompt)
                with _passing_on(running) as was_told:
                    told(Up(seconds, first, os.getpid(), log))
                    return _stay(running, was_told)
            finally:
                running.stop(grace)


def shown(command: Command) -> str:
    """A command as a shell takes it: variables first."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in command.variables.items()]
    return " ".join([*variables, shlex.join(command.words)])


def document(prepared: Prepared, up: Up | None = None) -> dict[str, Any]:
    """What is served and how, as JSON has it."""
    settings, parts = prepared.sizes.settings, prepared.sizes.parts
    found: dict[str, Any] = {
        "engine": prepared.engine,
        "url": prepared.address.url,
        "model": prepared.model,
        "models": list(prepared.names),
        "path": str(prepared.served.model),
        "adapters": [
            {"name": adapter.name, "path": str(adapter.path), "rank": adapter.rank}
            for adapter in prepared.served.adapters
        ],
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "reasons": list(prepared.sizes.reasons),
        "memory": {
            **{name: getattr(parts, name) for name in parts.__dataclass_fields__},
            "total": parts.total,
        },
        "command": list(prepared.command.words),
        "variables": dict(prepared.command.variables),
    }
    if up is not None:
        found |= {
            "pid": up.pid,
            "log": str(up.log),
            "seconds_to_start": round(up.seconds, 3),
            "smoke": {
                "prompt": up.smoke.prompt,
                "answer": up.smoke.answer,
                "first_token_seconds": round(up.smoke.first_token, 4),
                "seconds": round(up.smoke.seconds, 4),
            },
        }
    return found


def _ask(prepared: Prepared, running: Running, prompt: str | None) -> Smoke:
    endpoint = Endpoint(prepared.address.url, prepared.model, prepared.key, timeout=120.0)
    try:
        return smoke(endpoint, chat=prepared.chat, prompt=prompt)
    except RemergeError:
        # An engine that dies of its first question says more than the broken connection.
        code = running.wait(2.0)
        if code is not None:
            raise ended(running, code) from None
        raise


@contextmanager
def _passing_on(running: Running) -> Generator[threading.Event]:
    """Signals go to the engine; the event says that there was one."""
    was_told = threading.Event()

    def pass_on(number: int, frame: object) -> None:
        was_told.set()
        running.send(number)

    before = {
        number: signal.signal(number, pass_on)
        for number in _PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield was_told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stay(running: Running, was_told: threading.Event) -> RemergeError | None:
    """Until it ends: by itself, or because a signal says so."""
    deadline: float | None = None
    while (code := running.wait(0.2)) is None:
        if was_told.is_set():
            deadline = deadline or time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                running.stop(0)
    return None if was_told.is_set() else ended(running, code)


@contextmanager
def hangup_as_termination() -> Generator[None]:
    """A terminal that goes away ends what prepares or starts a server, as SIGTERM does."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _log(prepared: Prepared) -> Path:
    """Where the engine writes: one file for each address, begun anew."""
    log = place_for("logs", prepared.address.host, str(prepared.address.port)) / "server.log"
    log.unlink(missing_ok=True)
    return log


@contextmanager
def _followed(log: Path, *, show: bool) -> Generator[None]:
    """Copy what comes into a file to standard error."""
    if not show:
        yield
        return
    done = threading.Event()

    def follow() -> None:
        with log.open(errors="replace") as file:
            while True:
                last = done.is_set()
                while line := file.readline():
                    sys.stderr.write(line)
                if last:
                    return
                done.wait(0.1)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(2)
