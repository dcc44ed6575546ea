"""Load against a server of tokens whose faults are known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from remerge.serving.bench.load import Asking, put_load

STEP = 0.02


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.most, self.now = 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self._answer(body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        fault = {101: "refused", 102: "error", 103: "cut", 104: "short"}.get(body["prompt"][0])
        if fault == "refused":
            self.send_error(500, "no room")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        count = body["max_tokens"] - (fault == "short")
        for number in range(count):
            if fault == "cut" and number == 2:
                self._say({"choices": [{"text": "half"}]}, whole=False)
                return
            if fault == "error" and number == 2:
                self._say({"error": {"message": "the engine is dead"}})
                return
            time.sleep(STEP * (5 if number == 0 else 1))
            self._say({"choices": [{"text": "x", "finish_reason": None}]})
        self._say({"choices": [{"text": "", "finish_reason": "length"}]})
        self._say({"choices": [], "usage": {"completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, event: dict[str, Any], *, whole: bool = True) -> None:
        content = f"data: {json.dumps(event)}\n\n".encode()
        self.wfile.write(content if whole else content[:-9])
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_times_are_those_of_the_server(server: Server):
    prompts = [(number, 7) for number in range(6)]
    began = time.perf_counter()
    answers, seconds = put_load(Asking(server.url, "m"), prompts, concurrency=3, max_tokens=4)
    # On a busy machine all may take longer than the server waits, and never longer than here.
    most = time.perf_counter() - began
    assert server.most == 3
    assert [answer.fault for answer in answers] == [None] * 6
    assert [answer.tokens for answer in answers] == [4] * 6
    for answer in answers:
        assert answer.first is not None and 5 * STEP <= answer.first < most
        # The event that only ends an answer is no token of it.
        assert len(answer.between) == 3
        assert answer.first + sum(answer.between) >= 8 * STEP
    assert 2 * 8 * STEP <= seconds <= most


def test_all_are_asked_alike_and_in_order(server: Server):
    prompts = [(number,) for number in range(5)]
    asking = Asking(server.url, "m", {"cache_salt": "", "lora": [{"id": 0, "scale": 1.0}]})
    put_load(asking, prompts, concurrency=1, max_tokens=2)
    assert [body["prompt"] for body in server.asked] == [[n] for n in range(5)]
    for body in server.asked:
        assert body["model"] == "m" and body["ignore_eos"] and body["temperature"] == 0
        assert body["lora"] == [{"id": 0, "scale": 1.0}]
    # Nothing that was computed for one is found again by another.
    assert len({body["cache_salt"] for body in server.asked}) == 5


@pytest.mark.parametrize(
    ("first", "said"),
    [(101, "500"), (102, "the engine is dead"), (103, ""), (104, "3 tokens came, and 4")],
)
def test_what_fails_is_told(server: Server, first: int, said: str):
    answers, _ = put_load(
        Asking(server.url, "m"), [(1,), (first,), (2,)], concurrency=1, max_tokens=4
    )
    assert [answer.fault is None for answer in answers] == [True, False, True]
    assert said in (answers[1].fault or "")


def test_without_a_server(server: Server):
    url = "http://127.0.0.1:9"
    answers, _ = put_load(Asking(url, "m"), [(1,)], concurrency=1, max_tokens=4)
    assert "ConnectError" in (answers[0].fault or "")
