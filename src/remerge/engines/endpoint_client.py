"""Requests to an OpenAI-compatible server: repeated while the fault may pass, refused by name where
it will not.

Repeated are 408, 429, 5xx (501 excepted), broken connections, time running out and answers that are
no JSON. A server that was never reached is not waited for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit

from remerge.errors import BadInput, RemergeError, TryAgain, UsageError

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLES = ("REMERGE_API_KEY", "OPENAI_API_KEY")

# Longer than this, in seconds, nobody wants to be kept waiting by a command.
_LONGEST_WAIT = 120.0
_LONGEST_PAUSE = 30.0
# The whole distribution over a large vocabulary, as JSON, is some 20 MB.
_LARGEST = 256 * 2**20
_LAST_STEPS = re.compile(r"/(chat/completions|completions|models)$")
_TOO_LONG = re.compile(
    r"context (length|size|window)|exceed_context|too (long|many tokens)"
    r"|maximum.{0,20}(length|tokens)",
    re.IGNORECASE,
)


def environment_key() -> str | None:
    """The key that the environment gives; `KEY_VARIABLES` in this order."""
    found = (os.environ.get(name, "").strip() for name in KEY_VARIABLES)
    return next((key for key in found if key), None)


@dataclass(frozen=True)
class Endpoint:
    """A server. ``url`` is its root or its ``/v1``; ``model`` one of the models it serves, None for
    its only one; ``key`` is sent to it and written nowhere.

    ``concurrency`` requests at most are under way at once, each for ``timeout`` seconds at most and
    repeated ``retries`` times, after ``pause`` seconds and then twice as long each time.
    """

    url: str
    model: str | None = None
    key: str | None = field(default_factory=environment_key, repr=False)
    concurrency: int = 8
    timeout: float = 300.0
    retries: int = 5
    pause: float = 0.5

    @property
    def api(self) -> str:
        """Where the paths of the API begin: ``/v1`` where the URL has no path of its own. Raises
        `UsageError` for what is no address of a server."""
        try:
            parts = urlsplit(self.url.strip())
            host, _ = parts.hostname, parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(
                f"{_shown(self.url)!r} is no address of a server.",
                hint="Give one such as http://localhost:8000/v1.",
            )
        if "@" in parts.netloc:
            raise UsageError(
                "The server's address has a user or password in it, which results would show.",
                hint=f"Set {KEY_VARIABLES[0]} instead.",
            )
        if parts.query or parts.fragment:
            raise UsageError(
                f"The server's address {self.url!r} has more than a path.",
                hint="Give its base, such as http://localhost:8000/v1.",
            )
        path = _LAST_STEPS.sub("", parts.path.rstrip("/")).rstrip("/") or "/v1"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @property
    def root(self) -> str:
        """Where an engine's own paths begin, which lie beside ``/v1``."""
        return self.api.removesuffix("/v1")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.api).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def _shown(url: str) -> str:
    """An address without what may be a password."""
    return re.sub(r"//[^/]*@", "//...@", url)


class Refused(Exception):
    """The server says no, and would say it again: a status from 400 to 499, or 501."""

    def __init__(self, status: int, path: str, said: str) -> None:
        super().__init__(status, path, said)
        self.status, self.path, self.said = status, path, said


class Client:
    """Requests to one server, within one event loop (``async with``)."""

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx2

        self.endpoint = endpoint
        headers = {"Accept": "application/json", "User-Agent": "remerge"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        self._passing = (httpx2.TransportError, httpx2.DecodingError, TimeoutError)
        self._unreached = (httpx2.ConnectError, httpx2.ConnectTimeout)
        try:
            self._http = httpx2.AsyncClient(
                headers=headers,
                # Ours counts the whole request; this one would count silences only.
                timeout=httpx2.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout)),
                limits=httpx2.Limits(max_connections=endpoint.concurrency),
                # A proxy of the environment has no business with this machine's own server.
                trust_env=not endpoint.is_local,
            )
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The key of {' or '.join(KEY_VARIABLES)} has characters that no header may have."
            ) from error
        self._met = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, address: str) -> Any:
        """What lies at an address, as JSON; raises `Refused` and `TryAgain`."""
        return await self._insist("GET", address, None)

    async def post(self, address: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request, as JSON; raises `Refused` and `TryAgain`."""
        return await self._insist("POST", address, body)

    async def _insist(self, method: str, address: str, body: Mapping[str, Any] | None) -> Any:
        endpoint, reason = self.endpoint, ""
        for attempt in range(endpoint.retries + 1):
            wait: float | None = None
            try:
                async with asyncio.timeout(endpoint.timeout):
                    response, content = await self._once(method, address, body)
            except self._passing as error:
                if not self._met and isinstance(error, self._unreached):
                    raise self._absent(error) from error
                is_late = isinstance(error, TimeoutError) or "Timeout" in type(error).__name__
                reason = (
                    f"no answer within {endpoint.timeout:g} s"
                    if is_late
                    else f"{type(error).__name__}: {error}".rstrip(": ")
                )
            else:
                self._met = True
                status = response.status_code
                if status < 300:
                    try:
                        return json.loads(content)
                    except ValueError:
                        reason = "an answer that is no JSON"
                elif status in (408, 429) or (status >= 500 and status != 501):
                    reason = f"{status} {self._said(content)}".strip()
                    wait = _retry_after(response.headers.get("Retry-After"))
                else:
                    raise Refused(status, urlsplit(address).path, self._said(content))
            if wait is not None and wait > _LONGEST_WAIT:
                raise TryAgain(
                    f"The server at {endpoint.api} asks to wait {wait:.0f} s.", why=f"{reason}."
                )
            if attempt < endpoint.retries:
                await asyncio.sleep(_pause(endpoint.pause, attempt) if wait is None else wait)
        raise TryAgain(
            f"The server at {endpoint.api} failed {endpoint.retries + 1} times.",
            why=f"It said last: {reason.rstrip('.')}.",
            hint="Run the same command again: the answers that came are kept. A server that has "
            "ended may bear fewer requests at once.",
        )

    async def _once(
        self, method: str, address: str, body: Mapping[str, Any] | None
    ) -> tuple[httpx2.Response, bytes]:
        async with self._http.stream(method, address, json=body) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _LARGEST:
                    raise BadInput(f"The server at {self.endpoint.api} answers without an end.")
            return response, bytes(content)

    def _absent(self, error: Exception) -> TryAgain:
        parts = urlsplit(self.endpoint.api)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return TryAgain(
            f"There is no server at {self.endpoint.api}.",
            why=f"{type(error).__name__}: {error}".rstrip(": .") + ".",
            hint=f"Start one: vllm serve OUT --port {port}, "
            f"or llama-server -m OUT.gguf --port {port}.",
        )

    def _said(self, content: bytes) -> str:
        """What an answer that is an error says, shortened; a key in it is left out."""
        text = content.decode(errors="replace")
        try:
            found: Any = json.loads(text)
        except ValueError:
            found = text
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = cast("dict[str, Any]", found)[name]
        said = found if isinstance(found, str) else json.dumps(found)
        if self.endpoint.key:
            said = said.replace(self.endpoint.key, "...")
        said = " ".join(said.split())
        return said if len(said) <= 300 else said[:299] + "…"

    def error(self, refused: Refused, about: str) -> RemergeError:
        """What a refusal means to the user; ``about`` names what was asked."""
        api, said = self.endpoint.api, refused.said.rstrip(".") or "nothing"
        if refused.status in (401, 403):
            held = "refuses the key" if self.endpoint.key else "wants a key"
            return UsageError(
                f"The server at {api} {held} ({refused.status}).",
                why=f"It said: {said}.",
                hint=f"Set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}).",
            )
        if refused.status in (400, 413, 422) and _TOO_LONG.search(refused.said):
            return BadInput(
                f"{about[:1].upper()}{about[1:]} is too long for the server at {api}.",
                why=f"It said: {said}.",
                hint="Start the server with a longer context, or leave the question out.",
            )
        if refused.status in (404, 405):
            return UsageError(
                f"The server at {api} has no {refused.path} ({refused.status}: {said}).",
                why="The address may not be the API's base, or the server lacks this part of it.",
                hint="Give its base, such as http://localhost:8000/v1.",
            )
        return BadInput(
            f"The server at {api} refuses {about} ({refused.status}).", why=f"It said: {said}."
        )


def _pause(first: float, attempt: int) -> float:
    """Twice as long each time, and not all callers at the same moment."""
    return min(first * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def _retry_after(value: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
