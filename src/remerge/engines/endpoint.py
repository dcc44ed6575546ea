"""Questions to any OpenAI-compatible server: vLLM, llama.cpp's, SGLang, TGI, Ollama.

    ask(Endpoint("http://localhost:8000"), [Asked("Two and two is", max_tokens=4)], told)

Requests run side by side in an event loop of their own, in a thread of its own, so that a caller
may have one already; `ask` gives every reply to its caller's ``told`` as it comes.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.engines.endpoint_client import (
    KEY_VARIABLES,
    Client,
    Endpoint,
    Refused,
    environment_key,
)
from remerge.engines.endpoint_likelihoods import Text, Way, by_echo, find_way, rendered
from remerge.engines.endpoint_loop import elsewhere
from remerge.errors import BadInput, UsageError

__all__ = [
    "KEY_VARIABLES",
    "Answers",
    "Asked",
    "Endpoint",
    "Reply",
    "Served",
    "ask",
    "environment_key",
    "repeats_prompts",
    "served",
]

# How much is generated where an answer in words must stand for likelihoods.
_WORDS = 32
# Greedy means nothing else as well: vLLM takes a penalty from the model's generation_config.json.
# The names are vLLM's and SGLang's, and llama.cpp's; others pass over them, or are asked again.
_PLAIN: Mapping[str, Any] = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
_AT_MOST = re.compile(
    r"(?:max(?:imum)?(?: allowed)?|at most|less than or equal to|<=)\D{0,20}(\d+)"
)


@dataclass(frozen=True)
class Asked:
    """A question: either ``prompt``, as text that goes on, or ``messages``, which the server's chat
    template writes.

    ``max_tokens`` are generated, greedily; the log-likelihood of each of ``choices`` after the
    question is asked for, and the log-probabilities of the ``likeliest`` first tokens.
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    choices: tuple[str, ...] = ()
    max_tokens: int = 0
    likeliest: int = 0


@dataclass(frozen=True)
class Reply:
    """What a server answered. ``choices`` are sums of log-probabilities in nats, None where it does
    not tell them: ``text`` then is what to judge by. ``likeliest`` are log-probabilities of the
    first token by its text, where tokens share one that of the likeliest; None where it does not
    tell. ``finished``: the answer ended by itself, and not at ``max_tokens``."""

    text: str
    choices: tuple[float, ...] | None = None
    likeliest: Mapping[str, float] | None = None
    finished: bool = True


@dataclass(frozen=True)
class Served:
    """What a server says of itself: the model that is asked, all that it lists, and what ``owner``
    it names (``vllm``, ``llamacpp``)."""

    model: str | None
    models: tuple[str, ...]
    owner: str | None


@dataclass(frozen=True)
class Answers:
    """Of which model they are, and what one must know to read them."""

    served: Served
    notes: tuple[str, ...]


Told = Callable[[int, Reply], None]


def served(endpoint: Endpoint) -> Served:
    """The model that `ask` will ask, of those that the server lists.

    Raises `UsageError` where it lists none or several and none was chosen, `TryAgain` where there
    is no server.
    """

    async def find() -> Served:
        async with Client(endpoint) as client:
            return await _served(client)

    return elsewhere(lambda say: find(), lambda event: None)


def repeats_prompts(endpoint: Endpoint) -> bool:
    """Whether the server tells the log-probabilities of a prompt's tokens (``echo``), which is what
    others than `ask` need for likelihoods. Raises as `served`."""

    async def find() -> bool:
        async with Client(endpoint) as client:
            return await find_way(client, (await _served(client)).model) is by_echo

    return elsewhere(lambda say: find(), lambda event: None)


def ask(endpoint: Endpoint, questions: Sequence[Asked], told: Told) -> Answers:
    """Ask all questions; ``told`` is called with the number of each and its reply, in the caller's
    thread, in the order in which they come.

    What was told before a failure stands. Raises `TryAgain` (no server, or one that keeps failing),
    `UsageError` (key, model, address) and `BadInput` (a question that the server refuses); an
    exception in ``told``, or Ctrl-C, ends all requests.
    """
    for number, question in enumerate(questions, 1):
        if (question.prompt is None) == (question.messages is None):
            raise UsageError(f"Question {number} needs either a prompt or messages.")
    return elsewhere(
        lambda say: _ask(endpoint, questions, lambda number, reply: say((number, reply))),
        lambda event: told(*event),
    )


async def _ask(endpoint: Endpoint, questions: Sequence[Asked], tell: Told) -> Answers:
    async with Client(endpoint) as client:
        found = await _served(client)
        way: Way | None = None
        if any(question.choices for question in questions):
            way = await find_way(client, found.model)
        asking = _Asking(client, found, way)
        if way is None and any(question.choices for question in questions):
            asking.note(
                "The server tells no log-likelihoods of given texts: multiple choice is judged by "
                "the answers it writes."
            )
        waiting = iter(enumerate(questions))
        count = max(1, min(endpoint.concurrency, len(questions)))
        workers = [asyncio.create_task(asking.work(waiting, tell)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return Answers(found, tuple(asking.notes))


class _Asking:
    """One run of questions: what the server turned out to be able to do."""

    def __init__(self, client: Client, found: Served, way: Way | None) -> None:
        self._client, self._served, self._way = client, found, way
        self._plain = dict(_PLAIN)
        # How many of the likeliest tokens the server tells.
        self._most = math.inf
        self.notes: dict[str, None] = {}
        if found.model is not None and found.models and found.model not in found.models:
            self.note(f"The server does not list the model {found.model!r}, and was asked for it.")

    def note(self, text: str) -> None:
        self.notes[text] = None

    async def work(self, waiting: Iterator[tuple[int, Asked]], tell: Told) -> None:
        """Answer questions one by one, as long as there are any."""
        for number, question in waiting:
            try:
                reply = await self._reply(question)
            except Refused as refused:
                raise await self._error(refused, number, question) from refused
            tell(number, reply)

    async def _reply(self, question: Asked) -> Reply:
        choices = None
        if question.choices and self._way is not None:
            context = await self._context(question)
            if context is not None:
                choices = await self._way(
                    self._client, self._served.model, context, question.choices
                )
        tokens = question.max_tokens
        if question.choices and choices is None:
            tokens = max(tokens, _WORDS)
        if question.likeliest:
            tokens = max(tokens, 1)
        reply = await self._generated(question, tokens) if tokens else Reply("")
        text = reply.text if question.max_tokens or choices is None else ""
        return Reply(text, choices, reply.likeliest, reply.finished)

    async def _context(self, question: Asked) -> Text | None:
        if question.prompt is not None:
            return Text(question.prompt, True)
        found = await rendered(self._client, self._served.model, question.messages or ())
        if found is None:
            self.note(
                "The server does not tell how its chat template writes messages: multiple choice "
                "is judged by the answers it writes."
            )
        return found

    async def _generated(self, question: Asked, tokens: int) -> Reply:
        is_chat = question.messages is not None
        path = "chat/completions" if is_chat else "completions"
        while True:
            plain, many = dict(self._plain), int(min(question.likeliest, self._most))
            body = self._body(question, tokens, many, plain)
            try:
                found = await self._client.post(f"{self._client.endpoint.api}/{path}", body)
            except Refused as refused:
                if not self._can_do_without(refused, plain, many):
                    raise
                continue
            reply = _reply_of(found, self._client.endpoint.api)
            if many and reply.likeliest is None:
                self.note("The server tells no log-probabilities of its tokens.")
            if not reply.text and tokens >= _WORDS and _has_thought(found):
                self.note("Some answers hold nothing but reasoning: more tokens may be needed.")
            return reply

    def _body(
        self, question: Asked, tokens: int, many: int, plain: Mapping[str, Any]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "seed": 0, **plain}
        if self._served.model is not None:
            body["model"] = self._served.model
        if question.messages is not None:
            body["messages"] = [dict(message) for message in question.messages]
            if many:
                body |= {"logprobs": True, "top_logprobs": many}
        else:
            body["prompt"] = question.prompt
            if many:
                body["logprobs"] = many
        return body

    def _can_do_without(self, refused: Refused, plain: Mapping[str, Any], many: int) -> bool:
        """Whether what the server refused can be left out; it then is, from now on."""
        if refused.status not in (400, 422):
            return False
        if any(name in refused.said for name in plain):
            self._plain = {}
            self.note(
                "The server takes no setting against penalties for repetition: any of its own hold."
            )
            return True
        if many and "logprobs" in refused.said:
            limit = _AT_MOST.search(refused.said)
            least = int(limit[1]) if limit else 0
            self._most = min(self._most, least if least < many else 0)
            self.note(
                f"The server tells log-probabilities of {self._most} tokens at most."
                if self._most
                else f"The server refuses to tell log-probabilities: {refused.said}"
            )
            return True
        return False

    async def _error(self, refused: Refused, number: int, question: Asked) -> Exception:
        model = self._served.model
        if refused.status == 404 and model is not None and model not in self._served.models:
            return UsageError(
                f"The server at {self._client.endpoint.api} has no model {model!r}.",
                hint=f"It has {_listed(self._served.models)}.",
            )
        asked = question.prompt
        if asked is None and question.messages:
            asked = str(question.messages[-1].get("content", ""))
        shown = " ".join((asked or "").split())
        shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
        return self._client.error(refused, f"question {number + 1} ({shown!r})")


async def _served(client: Client) -> Served:
    """Which model will be asked."""
    chosen, api = client.endpoint.model, client.endpoint.api
    try:
        found = await client.get(f"{api}/models")
    except Refused as refused:
        if refused.status in (404, 405, 501) and chosen is not None:
            return Served(chosen, (), None)
        if refused.status in (404, 405, 501):
            raise UsageError(
                f"The server at {api} does not list its models ({refused.status}).",
                why="It may lie at another address, or not have this part of the API.",
                hint="Give the API's base, such as http://localhost:8000/v1, or name the model: "
                "--endpoint SIDE=MODEL@URL.",
            ) from refused
        raise client.error(refused, "to list its models") from refused
    entries = _entries(found)
    names = tuple(entry["id"] for entry in entries)
    if chosen is None and len(names) != 1:
        raise UsageError(
            f"The server at {api} lists {len(names)} models.",
            hint="Name the one to ask: --endpoint SIDE=MODEL@URL."
            + (f" There are {_listed(names)}." if names else ""),
        )
    owner = next((entry.get("owned_by") for entry in entries), None)
    return Served(
        names[0] if chosen is None else chosen, names, owner if isinstance(owner, str) else None
    )


def _entries(found: Any) -> list[dict[str, Any]]:
    """The entries of a list of models that have a name."""
    rows: Any = cast("dict[str, Any]", found).get("data") if isinstance(found, dict) else None
    listed = cast("list[Any]", rows) if isinstance(rows, list) else []
    entries = [cast("dict[str, Any]", row) for row in listed if isinstance(row, dict)]
    return [entry for entry in entries if isinstance(entry.get("id"), str)]


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none that it lists"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _reply_of(found: Any, api: str) -> Reply:
    """The answer in a completion or chat completion; raises `BadInput` for anything else."""
    try:
        choice = found["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"].get("content")
        if not isinstance(text, str | None):
            raise TypeError("text")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadInput(
            f"The server at {api} answers in another form than OpenAI's API.",
            why=f"It said: {str(found)[:200]}.",
            hint="Is this address that of an OpenAI-compatible server?",
        ) from error
    return Reply(
        text or "",
        likeliest=_likeliest(choice.get("logprobs")),
        finished=choice.get("finish_reason") != "length",
    )


def _likeliest(told: Any) -> dict[str, float] | None:
    """Log-probabilities of the first token: in the form of chats (llama.cpp has it everywhere), or
    of completions."""
    try:
        if told.get("content") is not None:
            rows = told["content"][0]["top_logprobs"]
            pairs = [(row["token"], row["logprob"]) for row in rows]
        else:
            pairs = list(told["top_logprobs"][0].items())
        pairs = [(str(token), float(value)) for token, value in pairs]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    found: dict[str, float] = {}
    for token, value in pairs:
        if not math.isnan(value):
            found[token] = max(value, found.get(token, -math.inf))
    return found or None


def _has_thought(found: Any) -> bool:
    message: dict[str, Any] = found["choices"][0].get("message") or {}
    return bool(message.get("reasoning_content") or message.get("reasoning"))
