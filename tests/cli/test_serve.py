"""`remerge serve` as people and supervisors run it, with a program in llama-server's place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from remerge.cli import group
from remerge.cli.serve import command
from remerge.engines.servers.running import free_port
from remerge.errors import RemergeError
from remerge.serving.printed.registry import FORMS
from tests.serving.fake_llama import llama_server, write_gguf
from tests.tiny import write_base

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "model.gguf", template=True)
    llama_server(tmp_path)
    return tmp_path


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serve(place: Path, port: int) -> Any:
    """`remerge serve WORDS` in ``place``; whatever a test does, nothing runs on."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **variables: str) -> subprocess.Popen[str]:
        own = {"XDG_CACHE_HOME": str(place / "cache"), "XDG_DATA_HOME": str(place / "data")}
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "remerge", "serve"),
                *("--engine-python", f"llama.cpp={place / 'llama-server'}"),
                *("--port", str(port), "--memory", "1GiB", *words),
            ],
            cwd=place,
            env={**os.environ, **own, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.communicate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_until(found: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def engines_of(place: Path) -> list[str]:
    """Processes that run the program of this test."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{place}/llama-server".encode() in words and b"remerge\0serve" not in words:
            found.append(folder.name)
    return found


def document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document on standard output, while the process runs on."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    return json.loads(text)


def said_when_up(process: subprocess.Popen[str]) -> str:
    """All that people are told until it serves."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "Ctrl-C ends it.\n":
            break
    return text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_end(
    serve: Serve, place: Path, port: int, number: signal.Signals
):
    process = serve("model.gguf", "--json")
    told = document(process)
    assert told["model"] == "model" and told["url"] == f"http://127.0.0.1:{port}"
    assert told["smoke"]["answer"].startswith("model says ")
    assert 0 < told["smoke"]["first_token_seconds"] < 5
    assert told["settings"]["context"] == 512
    assert told["memory"]["total"] <= told["memory"]["given"] == 2**30
    assert process.poll() is None and answers(port)
    began = time.monotonic()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and rest == ""
    assert time.monotonic() - began < 6
    assert not answers(port) and engines_of(place) == []


def test_it_takes_little_memory_itself(serve: Serve):
    """What it takes is not in the engine's memory, and a container's limit counts it."""
    process = serve("model.gguf", "--json")
    told = document(process)
    assert told["pid"] == process.pid
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    assert resident < 80_000


def test_what_people_read(serve: Serve, port: int):
    process = serve("model.gguf", "--name", "mine", "--prompt", "Hi there")
    said = said_when_up(process)
    process.terminate()
    process.communicate(timeout=20)
    assert "mine says Hi there" in said
    assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in said
    assert "Memory: 1.00 GiB" in said
    # The command is the very one that ran.
    line = next(line for line in said.splitlines() if line.startswith("$ "))
    assert f"--alias mine --host 127.0.0.1 --port {port}" in line


def test_print_starts_nothing(serve: Serve, place: Path, port: int):
    process = serve("model.gguf", "--print")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"{place}/llama-server" in said and "# Memory: 1.00 GiB" in said
    assert not answers(port)


def run(*words: str) -> int:
    """In this process: what starts no server."""
    return group(["serve", *words], standalone_mode=False)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("REMERGE_STORE", str(place / "store"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return place


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_printed_where_no_engine_is(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
):
    write_base(here / "merged")
    (here / "merged" / "tokenizer.json").write_text("{}")
    words = ["--memory", "4GiB", "--print", name]
    target = "merged"
    if name == "command":
        target = "model.gguf"
        words += ["--engine-python", f"llama.cpp={here / 'llama-server'}"]
    assert run(target, *words) == 0
    text = capsys.readouterr().out
    assert "# Memory: 4.00 GiB" in text and str(here / target) in text
    assert run(target, *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["form"] == name and "smoke" not in told


def test_print_may_stand_alone(here: Path, capsys: pytest.CaptureFixture[str]):
    own = f"llama.cpp={here / 'llama-server'}"
    for words in (["--print", "model.gguf"], ["model.gguf", "--print"], ["--print", "-q"]):
        rest = [] if "model.gguf" in words else ["model.gguf"]
        assert run("--engine-python", own, "--memory", "1GiB", *words, *rest) == 0
        assert "llama-server -m" in capsys.readouterr().out


def test_the_forms_are_those_there_are():
    option = next(one for one in command.params if one.name == "form")
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == tuple(FORMS)


def test_killed_it_leaves_no_engine(serve: Serve, place: Path, port: int):
    process = serve("model.gguf")
    wait_until(lambda: answers(port))
    process.kill()
    process.wait()
    wait_until(lambda: not engines_of(place))
    assert not answers(port)


def test_told_to_end_while_it_comes_up(serve: Serve, place: Path):
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)):
        process = serve("model.gguf", "--", "--mood", "slow")
        wait_until(lambda: len(engines_of(place)) == 2)
        process.send_signal(number)
        assert process.wait(20) == code
        assert engines_of(place) == []


def test_a_model_that_the_engine_refuses(serve: Serve, place: Path):
    process = serve("model.gguf", "--json", "--", "--mood", "broken")
    said, _ = process.communicate(timeout=40)
    assert process.returncode == 3
    error = json.loads(said)["error"]
    assert "data is not within the file" in error["why"]
    assert engines_of(place) == []


def test_an_engine_that_dies_of_the_first_question(serve: Serve):
    process = serve("model.gguf", "--", "--mood", "dies")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "The server ended (11)" in said


def test_an_engine_that_dies_later(serve: Serve):
    process = serve("model.gguf", "--json", "--", "--mood", "dies later")
    told = document(process)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 3 and rest == ""
    assert "The server ended (11)" in said and told["log"] in said


def test_a_taken_port(serve: Serve, place: Path, port: int):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = serve("model.gguf")
        _, said = process.communicate(timeout=40)
    assert process.returncode == 75
    assert "cannot be listened on" in said and "--port" in said
    assert engines_of(place) == []


def test_a_second_serve_leaves_the_first_its_log(serve: Serve):
    first = serve("model.gguf", "--json")
    told = document(first)
    second = serve("model.gguf")
    assert second.wait(40) == 75
    assert Path(told["log"]).read_bytes()


def test_too_slow(serve: Serve, place: Path):
    process = serve("model.gguf", "--startup-timeout", "1", "--", "--mood", "slow")
    _, said = process.communicate(timeout=40)
    assert process.returncode == 75 and "did not answer within 1 s" in said
    assert engines_of(place) == []


def test_the_key_is_asked_for_and_not_shown(serve: Serve, port: int):
    process = serve("model.gguf", REMERGE_API_KEY="s3cret")
    said = said_when_up(process)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            assert b"s3cret" not in (folder / "cmdline").read_bytes()
        except OSError:
            continue
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", b'{"model": "model", "prompt": "x"}'
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)
    process.terminate()
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "model says" in said and "s3cret" not in said + rest + errors


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["model.gguf", "other"], "unexpected extra argument"),
        (["model.gguf", "--", "--port=9"], "would contradict"),
        (["model.gguf", "--", "--served_model_name", "x"], "would contradict"),
        (["model.gguf", "--engine", "vllm"], "GGUF file, which vllm does not serve"),
        (["model.gguf", "--name", "a b"], "is no name"),
        (["model.gguf", "--to", "gguf:Q8_0"], "--to is for a checkpoint directory"),
        (["model.gguf", "--context", "513"], "more than the model's 512"),
        (["model.gguf", "--gpu-memory", "1GiB"], "without a GPU"),
        (["model.gguf+"], "has an empty part"),
        (["nothing"], "no path that exists"),
        (["empty"], "is no model"),
        (["."], "directory of GGUF files"),
    ],
)
def test_refused(here: Path, words: list[str], what: str):
    (here / "empty").mkdir()
    own = f"llama.cpp={here / 'llama-server'}"
    with pytest.raises((RemergeError, click.UsageError)) as caught:
        run("--engine-python", own, *words)
    error = caught.value
    assert what in (error.format_message() if isinstance(error, click.UsageError) else str(error))
