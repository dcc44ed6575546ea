"""A server on the loopback that speaks as much of OpenAI's API as `ask` uses, and misbehaves on
demand. Its model goes on with its prompt's words backwards."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass(frozen=True)
class Raw:
    """An answer as bytes, with a status and headers; ``reset``: none, the connection is cut."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    reset: bool = False


def failing(status: int, message: str = "no", **headers: str) -> Raw:
    said = json.dumps({"error": {"message": message}}).encode()
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Raw(said, status, named)


# What a server makes of a request; None: the usual.
Mood = Callable[[str, dict[str, Any], int], Raw | dict[str, Any] | None]


@dataclass
class ModelServer:
    """`with ModelServer() as server:`; ``requests`` are path, body and headers of all that came.

    ``mood`` is asked first, with the path, the body and how often this very request came before;
    every answer takes ``seconds`` times the length of its prompt's first word.
    """

    models: tuple[str, ...] = ("m",)
    mood: Mood = lambda path, body, before: None
    seconds: float = 0.0
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: Lock = field(default_factory=Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for at, body, _ in self.requests if at == path]

    def __enter__(self) -> ModelServer:
        state = self

        class Handler(_Handler):
            server_state = state

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # A client that went away is what some tests are about.

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Raw:
        with self._lock:
            before = sum((path, body) == (at, asked) for at, asked, _ in self.requests)
            self.requests.append((path, body, headers))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            found = self.mood(path, body, before)
            if found is None:
                found = self.usual(path, body)
            return found if isinstance(found, Raw) else Raw(json.dumps(found).encode())
        finally:
            with self._lock:
                self._at_once -= 1

    def usual(self, path: str, body: dict[str, Any]) -> Raw | dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": name, "owned_by": "tests"} for name in self.models]}
        if path == "/v1/completions":
            words = body["prompt"].split()
            time.sleep(self.seconds * len(words[0]))
            text = " ".join(reversed(words))
            choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
            if body.get("logprobs"):
                choice["logprobs"] = {"top_logprobs": [{text: -0.5, "other": -1.5}]}
            return {"choices": [choice]}
        if path == "/v1/chat/completions":
            text = body["messages"][-1]["content"].upper()
            return {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}
        return failing(404, "Not Found")


class _Handler(BaseHTTPRequestHandler):
    server_state: ModelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        found = self.server_state.answer(self.path, body, dict(self.headers.items()))
        if found.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        self.send_response(found.status)
        for name, value in found.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        self.wfile.write(found.body)

    def log_message(self, format: str, *args: object) -> None:
        pass
