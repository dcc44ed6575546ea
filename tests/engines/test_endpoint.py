"""Questions to servers: what is repeated and what is not, how many at once, what came before a
failure, and what the errors say. The server is real, and misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remerge.engines.endpoint import Asked, Endpoint, Reply, ask, environment_key, served
from remerge.errors import BadInput, TryAgain, UsageError
from tests.engines.model_server import ModelServer, Raw, failing

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REMERGE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def quick(server: ModelServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, **{"pause": 0.01, "timeout": 5.0, **settings})


def prompts(*texts: str, **settings: Any) -> list[Asked]:
    return [Asked(prompt=text, **{"max_tokens": 4, **settings}) for text in texts]


def answers(endpoint: Endpoint, questions: list[Asked]) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    ask(endpoint, questions, found.__setitem__)
    return found


def message(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def test_prompts_and_messages():
    with ModelServer() as server:
        questions = [Asked("one two", max_tokens=4), Asked(messages=message("hi"), max_tokens=7)]
        found = answers(quick(server), questions)
        assert found[0] == Reply("two one")
        assert found[1] == Reply("HI", finished=False)
        (text,), (chat,) = server.asked(TEXT), server.asked(CHAT)
    assert (text["prompt"], text["max_tokens"]) == ("one two", 4)
    assert (chat["messages"], chat["max_tokens"]) == ([*message("hi")], 7)
    for body in (text, chat):
        # Greedy: no penalty that a server's own defaults would bring.
        assert (body["model"], body["temperature"], body["seed"]) == ("m", 0, 0)
        assert body["repetition_penalty"] == 1.0


def test_the_likeliest_first_tokens():
    with ModelServer() as server:
        found = answers(quick(server), prompts("a b", likeliest=2))
        assert found[0].likeliest == {"b a": -0.5, "other": -1.5}
        assert server.asked(TEXT)[0]["logprobs"] == 2


def test_llama_cpp_tells_the_likeliest_as_chats_do():
    row = {"token": "x", "logprob": -1.0}
    told = [row, {"token": "", "logprob": -3.0}, {"token": "", "logprob": -2.0}]
    content = [{**row, "top_logprobs": told}, {**row, "top_logprobs": []}]
    choice = {"text": "x", "logprobs": {"content": content}}
    with ModelServer(mood=lambda p, b, n: {"choices": [choice]} if p == TEXT else None) as server:
        # Of tokens without a text of their own, the likelier.
        assert answers(quick(server), prompts("a", likeliest=3))[0].likeliest == {
            "x": -1.0,
            "": -2.0,
        }


def test_missing_log_probabilities_are_said():
    questions = [Asked(messages=message("hi"), max_tokens=1, likeliest=3)]
    with ModelServer() as server:
        found: list[Reply] = []
        notes = ask(quick(server), questions, lambda n, r: found.append(r)).notes
    assert found[0].likeliest is None
    assert notes == ("The server tells no log-probabilities of its tokens.",)


def test_a_server_that_tells_fewer_of_the_likeliest():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        if body.get("logprobs", 0) > 20:
            said = f"Requested sample logprobs of {body['logprobs']}, which is greater than max "
            return failing(400, said + "allowed: 20")
        return None

    with ModelServer(mood=mood) as server:
        found: dict[int, Reply] = {}
        done = ask(quick(server), prompts("a", "b", "c", likeliest=50), found.__setitem__)
        assert all(reply.likeliest for reply in found.values()) and len(found) == 3
        assert {body["logprobs"] for body in server.asked(TEXT)} == {50, 20}
    assert done.notes == ("The server tells log-probabilities of 20 tokens at most.",)


def test_a_server_that_knows_no_other_settings_than_openais():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        unknown = "repetition_penalty" in body
        return failing(400, "Unrecognized argument: repetition_penalty") if unknown else None

    with ModelServer(mood=mood) as server:
        found: dict[int, Reply] = {}
        done = ask(quick(server, concurrency=1), prompts("a", "b"), found.__setitem__)
        assert len(found) == 2 and len(server.asked(TEXT)) == 3
    assert len(done.notes) == 1 and "penalties" in done.notes[0]


@pytest.mark.parametrize(
    "fault",
    [
        failing(429),
        failing(500),
        failing(503, "Loading model"),
        Raw(reset=True),
        Raw(b"<html>"),
        Raw(b'{"choi'),
    ],
    ids=["429", "500", "503", "reset", "no JSON", "cut JSON"],
)
def test_passing_faults_are_repeated(fault: Raw):
    with ModelServer(mood=lambda p, b, n: fault if p == TEXT and n < 2 else None) as server:
        found = answers(quick(server), prompts("a b", "c d"))
        assert {n: r.text for n, r in found.items()} == {0: "b a", 1: "d c"}
        assert len(server.asked(TEXT)) == 6


@pytest.mark.parametrize("retries", [0, 3])
def test_faults_that_stay_end_it_after_so_many(retries: int):
    fault = failing(500, "CUDA is gone")
    with ModelServer(mood=lambda p, b, n: fault if p == TEXT else None) as server:
        with pytest.raises(TryAgain, match="CUDA is gone"):
            answers(quick(server, retries=retries), prompts("a"))
        assert len(server.asked(TEXT)) == retries + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 501])
def test_what_will_not_pass_is_not_repeated(status: int):
    with ModelServer(mood=lambda p, b, n: failing(status) if p == TEXT else None) as server:
        with pytest.raises((BadInput, UsageError)):
            answers(quick(server), prompts("a"))
        assert len(server.asked(TEXT)) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_says_how_long_to_wait(as_date: bool):
    moments: list[float] = []

    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        if path != TEXT:
            return None
        moments.append(time.monotonic())
        # A date has whole seconds.
        wait = formatdate(time.time() + 2, usegmt=True) if as_date else "0.7"
        return failing(429, "slower", Retry_After=wait) if before == 0 else None

    with ModelServer(mood=mood) as server:
        answers(quick(server), prompts("a"))
    ((first, second),) = pairwise(moments)
    assert 0.65 <= second - first < 2.6


def test_nobody_waits_an_hour():
    fault = failing(429, "quota", Retry_After="3600")
    with ModelServer(mood=lambda p, b, n: fault if p == TEXT else None) as server:
        with pytest.raises(TryAgain, match="3600 s"):
            answers(quick(server), prompts("a"))
        assert len(server.asked(TEXT)) == 1


def test_slow_answers_are_given_up_and_asked_again():
    def mood(path: str, body: dict[str, Any], before: int) -> None:
        if path == TEXT and before == 0:
            time.sleep(1.0)

    with ModelServer(mood=mood) as server:
        assert answers(quick(server, timeout=0.3), prompts("a b"))[0].text == "b a"
        assert len(server.asked(TEXT)) == 2


def test_never_more_at_once_than_asked_for():
    texts = [f"{'x' * (n % 5 + 1)} {n}" for n in range(40)]
    with ModelServer(seconds=0.01) as server:
        found = answers(quick(server, concurrency=3), prompts(*texts))
        assert server.most_at_once == 3
    assert {n: reply.text for n, reply in found.items()} == {
        n: " ".join(reversed(text.split())) for n, text in enumerate(texts)
    }


def test_answers_are_told_as_they_come():
    order: list[int] = []
    with ModelServer(seconds=0.05) as server:
        texts = ["xxxxxxxx slow", "x fast", "xx middle"]
        threads: set[int] = set()

        def told(number: int, reply: Reply) -> None:
            order.append(number)
            threads.add(threading.get_ident())

        ask(quick(server), prompts(*texts), told)
    assert order == [1, 2, 0]
    assert threads == {threading.get_ident()}


def test_what_came_before_a_failure_stands():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        return failing(400, "bad") if "five" in str(body.get("prompt")) else None

    found: dict[int, Reply] = {}
    with ModelServer(mood=mood) as server:
        texts = prompts("one", "two", "three", "four", "five", "six")
        with pytest.raises(BadInput, match=r"question 5 \('five'\)"):
            ask(quick(server, concurrency=1), texts, found.__setitem__)
    assert sorted(found) == [0, 1, 2, 3]


def test_a_caller_that_fails_ends_all_requests():
    class Full(Exception):
        pass

    def told(number: int, reply: Reply) -> None:
        raise Full

    with ModelServer(seconds=0.05) as server:
        with pytest.raises(Full):
            ask(quick(server, concurrency=2), prompts(*("x y" for _ in range(50))), told)
        seen = len(server.requests)
        time.sleep(0.2)
        assert len(server.requests) == seen < 10


def test_within_a_running_event_loop():
    async def main(endpoint: Endpoint) -> dict[int, Reply]:
        return answers(endpoint, prompts("a b"))

    with ModelServer() as server:
        assert asyncio.run(main(quick(server)))[0].text == "b a"


def test_interrupting_ends_quickly(tmp_path: Path):
    program = tmp_path / "asking.py"
    program.write_text(
        "import sys\n"
        "from remerge.engines.endpoint import *\n"
        "questions = [Asked('x ' * n, max_tokens=1) for n in range(1, 100)]\n"
        "try:\n"
        "    endpoint = Endpoint(sys.argv[1], concurrency=4)\n"
        "    ask(endpoint, questions, lambda n, r: print(n, flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )

    def mood(path: str, body: dict[str, Any], before: int) -> None:
        if path == TEXT and len(body["prompt"]) > 8:
            time.sleep(20)

    with ModelServer(mood=mood) as server:
        command = [sys.executable, str(program), server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.3)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(10)
        assert process.returncode == 130
        assert time.monotonic() - started < 3


def test_the_model_is_the_only_one():
    with ModelServer() as server:
        assert served(quick(server)).model == "m"
        assert served(quick(server)).owner == "tests"
    with ModelServer(models=("a", "b")) as server:
        with pytest.raises(UsageError, match=r"lists 2 models.*a, b"):
            answers(quick(server), prompts("x"))
        assert answers(quick(server, model="b"), prompts("x y"))[0].text == "y x"
        assert server.asked(TEXT)[0]["model"] == "b"
    with ModelServer(models=()) as server, pytest.raises(UsageError, match="lists 0 models"):
        served(quick(server))


def test_a_model_that_is_not_there():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        return failing(404, "The model `z` does not exist.") if path == TEXT else None

    with (
        ModelServer(models=("a", "b"), mood=mood) as server,
        pytest.raises(UsageError, match=r"no model 'z'.*It has a, b"),
    ):
        answers(quick(server, model="z"), prompts("x"))


def test_a_model_that_the_server_answers_for_but_does_not_list():
    with ModelServer() as server:
        notes = ask(quick(server, model="other"), prompts("x"), lambda n, r: None).notes
    assert len(notes) == 1 and "'other'" in notes[0]


def test_a_server_without_a_list_of_models():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        return failing(404) if path == "/v1/models" else None

    with ModelServer(mood=mood) as server:
        assert answers(quick(server, model="z"), prompts("x y"))[0].text == "y x"
        with pytest.raises(UsageError, match="does not list its models"):
            served(quick(server))


def test_no_server(unused_port: int):
    started = time.monotonic()
    with pytest.raises(TryAgain, match=rf"no server .*vllm serve OUT --port {unused_port}"):
        answers(Endpoint(f"http://127.0.0.1:{unused_port}"), prompts("x"))
    assert time.monotonic() - started < 2


@pytest.fixture
def unused_port() -> int:
    with ModelServer() as server:
        return int(server.url.rpartition(":")[2])


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch):
    assert environment_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-second")
    assert environment_key() == "sk-second"
    monkeypatch.setenv("REMERGE_API_KEY", "sk-first")

    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        return failing(401, "Incorrect key: sk-first") if path == TEXT else None

    with ModelServer(mood=mood) as server:
        endpoint = quick(server)
        with pytest.raises(UsageError, match=r"refuses the key .*REMERGE_API_KEY") as caught:
            answers(endpoint, prompts("x"))
        assert all(sent["Authorization"] == "Bearer sk-first" for _, _, sent in server.requests)
    assert "sk-first" not in str(caught.value) + repr(endpoint)
    assert "sk-first" not in "".join(map(repr, [caught.value.__cause__]))


def test_a_missing_key_is_named():
    with (
        ModelServer(mood=lambda p, b, n: failing(401, "who are you")) as server,
        pytest.raises(UsageError, match=r"wants a key .*Set REMERGE_API_KEY"),
    ):
        answers(quick(server), prompts("x"))


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 512 tokens. However, you requested 600.",
        "request (4403 tokens) exceeds the available context size (512 tokens)",
        "Input is too long for requested model.",
    ],
)
def test_a_question_that_is_too_long_is_named(said: str):
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | None:
        return failing(400, said) if path == CHAT else None

    with (
        ModelServer(mood=mood) as server,
        pytest.raises(BadInput, match=r"Question 1 \('tell me'\) is too long"),
    ):
        answers(quick(server), [Asked(messages=message("tell\nme"), max_tokens=1)])


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"text": 3}]},
        {"choices": {"text": "x"}},
        {"error": "unexpected"},
        None,
    ],
    ids=json.dumps,
)
def test_what_is_no_completion(told: Any):
    body = Raw(json.dumps(told).encode())
    with (
        ModelServer(mood=lambda p, b, n: body if p == TEXT else None) as server,
        pytest.raises(BadInput, match="another form"),
    ):
        answers(quick(server), prompts("x"))


@pytest.mark.parametrize(
    ("url", "api", "root"),
    [
        ("http://h:8000", "http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/", "http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000/v1", "http://h:8000"),
        ("https://h/openai/v1/chat/completions", "https://h/openai/v1", "https://h/openai"),
        ("http://[::1]:80/v1/completions", "http://[::1]:80/v1", "http://[::1]:80"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai", "https://h/v1beta/openai"),
    ],
)
def test_addresses(url: str, api: str, root: str):
    endpoint = Endpoint(url)
    assert (endpoint.api, endpoint.root) == (api, root)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://h/v1",
        "http://",
        "http://h:x/",
        "http://u:secret@h/",
        "http://h?k=1",
    ],
)
def test_what_is_no_address(url: str):
    with pytest.raises(UsageError) as caught:
        answers(Endpoint(url), prompts("x"))
    assert "secret" not in str(caught.value)


def test_a_question_is_one_or_the_other():
    for question in (Asked(), Asked("a", messages=message("b"))):
        with pytest.raises(UsageError, match="Question 1 needs either"):
            ask(Endpoint("http://127.0.0.1:9"), [question], lambda n, r: None)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with ModelServer() as server:
        assert answers(quick(server), prompts("a b"))[0].text == "b a"
    assert os.environ["HTTP_PROXY"]
