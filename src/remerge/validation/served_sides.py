"""A side that a server answers for: what is to be deployed is then what is measured.

Servers are asked in text, and tell little of probabilities: those of the likeliest first tokens of
an answer, by their text. Replies are remembered as they come, so that a comparison goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from remerge.artefacts.making import Report
from remerge.artefacts.test_result import Cost
from remerge.engines.endpoint import Asked, Endpoint, Reply, ask, served
from remerge.engines.scoring import Item, Wide
from remerge.errors import UsageError
from remerge.validation import judging
from remerge.validation.asking_sets import Asked as AskedQuestion
from remerge.validation.asking_sets import Task
from remerge.validation.choices import chosen
from remerge.validation.remembered_answers import Memory
from remerge.validation.rendering import has_template

Who = Literal["merged", "adapter"]

_REPLIES = "replies.jsonl"
_LIKELIEST = 20
# Of the reference's tokens so many are known by their text.
_NAMED = 200
_REST = 1e-5


@dataclass(frozen=True)
class Served:
    """What a server answered: each task's answers, judged, and of each question the likeliest first
    tokens, None where it does not tell them."""

    answers: Mapping[str, judging.Answered]
    likeliest: Mapping[str, tuple[Mapping[str, float] | None, ...]]
    cost: Cost
    notes: tuple[str, ...]


def parse_endpoints(values: Sequence[str]) -> dict[Who, Endpoint]:
    """``[SIDE=][MODEL@]URL`` each; the side is ``merged`` unless it says ``adapter``. Raises
    `UsageError` for another side, two of a side, or no address."""
    found: dict[Who, Endpoint] = {}
    for value in values:
        before, colon, rest = value.partition("://")
        words, at, scheme = before.rpartition("@")
        side, equals, model = words.partition("=")
        if not at:
            side, equals, scheme = before.rpartition("=")
            model = ""
        elif not equals:
            side, model = "", words
        who = side or "merged"
        if who not in ("merged", "adapter") or not colon:
            raise UsageError(
                f"--endpoint {value!r} names no server.",
                hint="Write URL, adapter=URL or merged=MODEL@URL, e.g. http://localhost:8000.",
            )
        if who in found:
            raise UsageError(f"--endpoint names two servers for {who}.")
        endpoint = found[who] = Endpoint(f"{scheme}://{rest}", model or None)
        _ = endpoint.api
    return found


def ask_served(
    who: Who,
    endpoint: Endpoint,
    tasks: Sequence[Task],
    items: Mapping[int, Item],
    tokenizer: Any,
    memory: Memory,
    identity: Mapping[str, Any],
    report: Report,
    *,
    as_chat: bool,
) -> Served:
    """Ask a server all questions that are not known; ``identity`` is what it is said to serve.

    Raises what `remerge.engines.endpoint.ask` raises; what was answered before that is kept.
    """
    started = time.time()
    about = served(endpoint)
    place = memory.of({**identity, "server": endpoint.api, "model": about.model}).place
    every = [(task, one) for task in tasks for one in task.asked]
    questions = [_question(one, items, tokenizer, as_chat=as_chat) for _, one in every]
    known = _read(place)
    digests = [_digest(question) for question in questions]
    wanted = [number for number, digest in enumerate(digests) if digest not in known]
    notes: tuple[str, ...] = ()
    done = 0

    def told(number: int, reply: Reply) -> None:
        nonlocal done
        done += 1
        digest = digests[wanted[number]]
        known[digest] = reply
        _append(place, digest, reply)
        report(done, len(wanted), f"questions to {who}")

    if wanted:
        notes = ask(endpoint, [questions[number] for number in wanted], told).notes
    replies = [known[digest] for digest in digests]
    answers: dict[str, judging.Answered] = {}
    likeliest: dict[str, tuple[Mapping[str, float] | None, ...]] = {}
    for task in tasks:
        mine = [reply for (other, _), reply in zip(every, replies, strict=True) if other is task]
        said = [_said(one, reply) for one, reply in zip(task.asked, mine, strict=True)]
        answers[task.questions.name] = judging.answered(task.questions, said)
        likeliest[task.questions.name] = tuple(reply.likeliest for reply in mine)
    cost = Cost(
        side=who,
        engine=f"server{f' ({about.owner})' if about.owner else ''}",
        seconds=round(time.time() - started, 2),
        peak_memory=0,
        asked=len(wanted),
        cached=len(every) - len(wanted),
    )
    return Served(answers, likeliest, cost, notes)


def _question(
    one: AskedQuestion, items: Mapping[int, Item], tokenizer: Any, *, as_chat: bool
) -> Asked:
    question = one.question
    messages: tuple[Mapping[str, Any], ...] | None = question.messages or None
    if messages is None and as_chat and has_template(tokenizer):
        messages = ({"role": "user", "content": question.prompt},)
    prompt = question.prompt if messages is None else None
    if one.weighed is not None:
        return Asked(prompt, messages, choices=question.choices)
    tokens = items[one.items[0]].tokens
    return Asked(prompt, messages, max_tokens=tokens, likeliest=_LIKELIEST)


def _said(one: AskedQuestion, reply: Reply) -> str:
    """An answer, or the text of the choice that is the likeliest, or that was written."""
    question = one.question
    if one.weighed is None:
        return reply.text
    if reply.choices is not None:
        norm = question.scorer == "choice_norm"
        return question.choices[chosen(reply.choices, question.choices, by_bytes=norm)]
    said = reply.text.strip()
    return next((choice for choice in question.choices if choice.strip() == said), said)


def first_token_kl(
    reference: Sequence[Wide], told: Sequence[Mapping[str, float] | None], tokenizer: Any
) -> tuple[float, int] | None:
    """Mean KL divergence (nats) of a server's first tokens from the reference's rows (tokens), over
    the tokens that it names and all others as one: a lower bound. With how many questions it was
    taken over; None where the server told nothing."""
    found: list[float] = []
    for row, likeliest in zip(reference, told, strict=True):
        if not likeliest:
            continue
        p = np.exp(row)
        named: dict[str, float] = {}
        for token in np.argsort(-p, kind="stable")[:_NAMED]:
            named.setdefault(tokenizer.decode([int(token)]), float(p[token]))
        both = {
            text: (named[text], float(np.exp(value)))
            for text, value in likeliest.items()
            if text in named
        }
        if not both:
            continue
        rest_p = 1 - sum(one for one, _ in both.values())
        rest_q = 1 - sum(other for _, other in both.values())
        value = sum(one * np.log(one / other) for one, other in both.values() if one and other)
        if rest_p > _REST and rest_q > _REST:
            value += rest_p * np.log(rest_p / rest_q)
        found.append(max(float(value), 0.0))
    return (float(np.mean(found)), len(found)) if found else None


def _digest(question: Asked) -> str:
    text = json.dumps([question.prompt, question.messages, question.choices, question.max_tokens])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(place: Path) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    with suppress(OSError):
        for line in (place / _REPLIES).read_bytes().splitlines():
            # The last line of a run that was killed may be half of one.
            with suppress(ValueError, KeyError, TypeError):
                document = json.loads(line)
                choices = document["choices"]
                found[document["question"]] = Reply(
                    document["text"],
                    None if choices is None else tuple(choices),
                    document["likeliest"],
                    document["finished"],
                )
    return found


def _append(place: Path, digest: str, reply: Reply) -> None:
    document = {
        "question": digest,
        "text": reply.text,
        "choices": reply.choices,
        "likeliest": None if reply.likeliest is None else dict(reply.likeliest),
        "finished": reply.finished,
    }
    with suppress(OSError), (place / _REPLIES).open("ab", buffering=0) as stream:
        stream.write((json.dumps(document) + "\n").encode())
