"""Load on a server: so many streamed requests at once, each timed piece by piece.

The next request of a stream begins when its last one has ended, so that as many as asked for are
under way until the last ones end.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from remerge.engines.endpoint_loop import elsewhere
from remerge.sources.documents import as_list, as_object

if TYPE_CHECKING:
    import httpx2

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A request as it went: the tokens it gave, seconds until its first piece, and seconds between
    one piece and the next. ``fault`` says what was wrong with it, None where nothing was."""

    tokens: int
    first: float | None
    between: tuple[float, ...]
    fault: str | None = None


@dataclass(frozen=True)
class Asking:
    """How a server is asked: its root, the model's name, and what its engine takes besides."""

    url: str
    model: str
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timeout: float = 600.0


def put_load(
    asking: Asking, prompts: Sequence[Tokens], *, concurrency: int, max_tokens: int
) -> tuple[list[Answer], float]:
    """Ask every prompt for ``max_tokens`` tokens, ``concurrency`` at once; the answers in the order
    of the prompts, and the seconds from the first request to the last answer."""
    return elsewhere(
        lambda say: _load(asking, prompts, concurrency, max_tokens), lambda event: None
    )


async def _load(
    asking: Asking, prompts: Sequence[Tokens], concurrency: int, max_tokens: int
) -> tuple[list[Answer], float]:
    import httpx2

    found: dict[int, Answer] = {}
    waiting = iter(enumerate(prompts))
    limits = httpx2.Limits(max_connections=concurrency)
    # A proxy of the environment has no business with this machine's own server.
    async with httpx2.AsyncClient(timeout=asking.timeout, limits=limits, trust_env=False) as client:
        started = time.perf_counter()
        await asyncio.gather(
            *(_work(client, asking, waiting, max_tokens, found) for _ in range(concurrency))
        )
        seconds = time.perf_counter() - started
    return [found[number] for number in range(len(prompts))], seconds


async def _work(
    client: httpx2.AsyncClient,
    asking: Asking,
    waiting: Iterator[tuple[int, Tokens]],
    max_tokens: int,
    found: dict[int, Answer],
) -> None:
    for number, prompt in waiting:
        found[number] = await _ask(client, asking, prompt, max_tokens)


async def _ask(
    client: httpx2.AsyncClient, asking: Asking, prompt: Tokens, max_tokens: int
) -> Answer:
    import httpx2

    body = {
        "model": asking.model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **asking.extra,
    }
    if "cache_salt" in body:
        # vLLM then finds no beginning that it has computed before.
        body["cache_salt"] = uuid.uuid4().hex
    started, moments, tokens = time.perf_counter(), list[float](), 0
    try:
        async with client.stream("POST", f"{asking.url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                said = (await response.aread()).decode(errors="replace")
                return Answer(0, None, (), f"{response.status_code} {' '.join(said.split())[:300]}")
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                now = time.perf_counter()
                text = line.removeprefix("data:").strip()
                if text == "[DONE]":
                    break
                event = as_object(json.loads(text)) or {}
                if "error" in event:
                    return Answer(0, None, (), f"{event['error']}"[:300])
                if as_list(event.get("choices")) and not _is_last(event):
                    moments.append(now)
                usage = as_object(event.get("usage")) or {}
                tokens = int(usage.get("completion_tokens") or tokens)
    except (httpx2.TransportError, httpx2.DecodingError, ValueError) as error:
        return Answer(0, None, (), f"{type(error).__name__}: {error}".rstrip(": "))
    fault = None
    if tokens != max_tokens:
        fault = f"{tokens} tokens came, and {max_tokens} were asked for"
    between = tuple(later - one for one, later in pairwise(moments))
    return Answer(tokens, moments[0] - started if moments else None, between, fault)


def _is_last(event: Mapping[str, Any]) -> bool:
    """Whether an event only says how an answer ended, and brings nothing more of it."""
    choices = as_list(event.get("choices")) or [{}]
    choice = as_object(choices[0]) or {}
    return choice.get("finish_reason") is not None and not choice.get("text")
