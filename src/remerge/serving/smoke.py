"""One prompt to a server that has just come up: does it answer, and how soon?"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from remerge.engines.endpoint import Asked, Endpoint, Reply, ask
from remerge.engines.servers.server import Served
from remerge.sources.documents import as_object
from remerge.sources.gguf_header import read_gguf_header

PROMPT = "Say hello in one short sentence."
_TEXT = "Hello, my name is"
_TOKENS = 24


@dataclass(frozen=True)
class Smoke:
    """What was asked and answered; seconds of a first request of one token, and of the answer."""

    prompt: str
    chat: bool
    answer: str
    first_token: float
    seconds: float


def smoke(endpoint: Endpoint, *, chat: bool, prompt: str | None) -> Smoke:
    """Ask a chat model with a message, any other with a text to go on from.

    Raises what `ask` does.
    """
    text = prompt or (PROMPT if chat else _TEXT)
    _, first = _timed(endpoint, text, chat=chat, tokens=1)
    reply, seconds = _timed(endpoint, text, chat=chat, tokens=_TOKENS)
    return Smoke(text, chat, reply.text.strip(), first, seconds)


def has_chat_template(served: Served) -> bool:
    """Whether a model says how messages are written."""
    if served.model.is_file():
        return "tokenizer.chat_template" in read_gguf_header(served.model).metadata
    if (served.model / "chat_template.jinja").is_file():
        return True
    return _states_template(served.model / "tokenizer_config.json")


def curl(url: str, model: str, *, chat: bool, key: bool) -> str:
    """A line that asks the server from a shell."""
    path = "/v1/chat/completions" if chat else "/v1/completions"
    asked = {"messages": [{"role": "user", "content": "Hello"}]} if chat else {"prompt": "Hello"}
    body = json.dumps({"model": model, **asked, "max_tokens": 64})
    quoted = body.replace("'", "'\\''")
    header = ' -H "Authorization: Bearer $REMERGE_API_KEY"' if key else ""
    return f"curl {url}{path} -H 'Content-Type: application/json'{header} -d '{quoted}'"


def _timed(endpoint: Endpoint, text: str, *, chat: bool, tokens: int) -> tuple[Reply, float]:
    question = (
        Asked(messages=[{"role": "user", "content": text}], max_tokens=tokens)
        if chat
        else Asked(prompt=text, max_tokens=tokens)
    )
    found: list[Reply] = []
    began = time.monotonic()
    ask(endpoint, [question], lambda number, reply: found.append(reply))
    return found[0], time.monotonic() - began


def _states_template(config: Path) -> bool:
    try:
        found = as_object(json.loads(config.read_bytes()))
    except (OSError, ValueError):
        return False
    return bool((found or {}).get("chat_template"))
