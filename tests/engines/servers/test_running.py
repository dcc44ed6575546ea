"""A server is started, waited for and ended, and no process of it stays, whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remerge.engines.servers.running import (
    check_free,
    ended,
    free_port,
    running,
    start,
    wait_healthy,
)
from remerge.engines.servers.server import Address, Command
from remerge.errors import BadInput, TryAgain, UsageError
from tests.engines.servers.programs import command, is_alive

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def address() -> Address:
    return Address(port=free_port())


def wait_until(found, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@needs_proc
def test_it_answers_and_leaves_nothing(tmp_path: Path, address: Address):
    log = tmp_path / "logs" / "server.log"
    with running(command(tmp_path, address), address, log=log, timeout=30) as server:
        found = server.processes
        assert len(found) == 3 and all(map(is_alive, found))
    assert not any(map(is_alive, found))
    assert server.wait(0) == 0
    assert "told to end" in log.read_text()
    check_free(address)


@needs_proc
@pytest.mark.parametrize("mood", ["plain", "stubborn"])
def test_one_that_does_not_end_is_killed(tmp_path: Path, address: Address, mood: str):
    server = start(command(tmp_path, address, mood), address, log=tmp_path / "log")
    wait_healthy(server, address, timeout=30)
    found = server.processes
    began = time.monotonic()
    code = server.stop(grace=0.3)
    assert time.monotonic() - began < 10
    assert code == 128 + (signal.SIGTERM if mood == "plain" else signal.SIGKILL)
    assert not any(map(is_alive, found))


@needs_proc
def test_an_engine_dies_with_a_killed_remerge(tmp_path: Path, address: Address):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from remerge.engines.servers.running import start, wait_healthy\n"
        "from remerge.engines.servers.server import Address\n"
        "from tests.engines.servers.programs import command\n"
        f"place, address = Path({str(tmp_path)!r}), Address(port={address.port})\n"
        "server = start(command(place, address), address, log=place / 'log')\n"
        "wait_healthy(server, address, timeout=30)\n"
        "print(*server.processes, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root
    ) as caller:
        assert caller.stdout is not None
        found = [int(word) for word in caller.stdout.readline().split()]
        assert len(found) == 3
        caller.kill()
    wait_until(lambda: not any(map(is_alive, found)))
    assert "told to end" in (tmp_path / "log").read_text()


@needs_proc
def test_interrupted_while_it_starts(tmp_path: Path, address: Address):
    server = start(command(tmp_path, address, "slow"), address, log=tmp_path / "log")
    wait_until(lambda: "loading" in server.last_lines())
    found = server.processes
    assert found
    server.stop()
    assert not any(map(is_alive, found))


def test_signals_reach_the_engine(tmp_path: Path, address: Address):
    server = start(command(tmp_path, address), address, log=tmp_path / "log")
    try:
        wait_healthy(server, address, timeout=30)
        server.send(signal.SIGTERM)
        assert server.wait(10) == 0
    finally:
        server.stop()


def test_what_it_ended_with_is_told(tmp_path: Path, address: Address):
    with (
        pytest.raises(BadInput, match=r"no such tensor: model.embed_tokens.weight"),
        running(command(tmp_path, address, "broken"), address, log=tmp_path / "log", timeout=30),
    ):
        pass
    with (
        pytest.raises(TryAgain, match=r"want of memory") as caught,
        running(command(tmp_path, address, "large"), address, log=tmp_path / "log", timeout=30),
    ):
        pass
    assert "--context" in str(caught.value.hint)


def test_one_that_takes_too_long(tmp_path: Path, address: Address):
    with (
        pytest.raises(TryAgain, match=r"did not answer within 0.5 s.*loading the model"),
        running(command(tmp_path, address, "slow"), address, log=tmp_path / "log", timeout=0.5),
    ):
        pass


def test_one_that_dies_later(tmp_path: Path, address: Address):
    with running(
        command(tmp_path, address, "dies"), address, log=tmp_path / "log", timeout=30
    ) as server:
        assert server.wait(20) == 9
        assert "listening with" in str(ended(server, 9))


def test_a_taken_port(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address(port=taken.getsockname()[1])
        with pytest.raises(TryAgain, match="cannot be listened on"):
            start(command(tmp_path, address), address, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_what_cannot_be_started(tmp_path: Path, address: Address):
    with pytest.raises(UsageError, match="no program"):
        start(Command(("/no/such/engine",)), address, log=tmp_path / "log")
    with pytest.raises(UsageError, match="no address"):
        check_free(Address("no such host"))
    # A documentation's address (RFC 5737): nobody else is running there.
    with pytest.raises(UsageError, match="no address"):
        check_free(Address("203.0.113.7"))
    # A script whose interpreter is gone is found, and does not run.
    script = tmp_path / "engine"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o755)
    server = start(Command((str(script),)), address, log=tmp_path / "log")
    assert server.wait(10) == 127
    assert "No such file" in server.last_lines()
    server.stop()


def test_shells_paths_are_not_the_engines(
    tmp_path: Path, address: Address, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = (
        sys.executable,
        "-c",
        "import os; print(os.environ.get('PYTHONPATH'), os.environ['A'])",
    )
    server = start(Command(words, {"A": "b"}), address, log=tmp_path / "log")
    assert server.wait(10) == 0
    assert server.last_lines() == "None b"
    server.stop()
    assert os.environ["PYTHONPATH"] == str(tmp_path)
