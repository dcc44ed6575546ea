"""Log-likelihoods of given texts from a server, in the two ways that servers have.

`by_echo`: /v1/completions repeats the prompt with the log-probability of each of its tokens (vLLM,
SGLang). `by_next_tokens`: llama.cpp's server does not, but says of a row of token ids how likely
each next token is (/completion with ``n_probs``), which is asked token by token.

Both cut where the tokens of the context alone end, white space at its end counted as the
continuation's: the rule of lm-eval (`lm_eval/api/model.py`, ``_encode_pair``).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from remerge.engines.endpoint_client import Client, Refused
from remerge.errors import BadInput, TryAgain

# How many of the likeliest next tokens llama.cpp is asked for; all, where the one looked for is
# not among them (it gives no more than there are).
_MANY, _ALL = 1000, 10_000_000
# Any text of some tokens will do to see whether prompts are repeated.
_PROBE = "One, two, three, four."


class Text(NamedTuple):
    """A text as the server will cut it; ``special``: the tokenizer adds its special tokens."""

    text: str
    special: bool


Way = Callable[[Client, str | None, Text, Sequence[str]], Awaitable[tuple[float, ...]]]


async def find_way(client: Client, model: str | None) -> Way | None:
    """How this server tells log-likelihoods; None where it does not."""
    try:
        await _next_tokens(client, await _ids(client, "One, two"), 1)
    except (Refused, TryAgain, BadInput):
        pass
    else:
        return by_next_tokens
    try:
        await by_echo(client, model, Text(_PROBE[:3], True), (_PROBE[3:],))
    except (Refused, BadInput):
        return None
    except TryAgain:
        # Some servers fail at what they do not know. Is it still there?
        with suppress(Refused):
            await client.get(f"{client.endpoint.api}/models")
        return None
    return by_echo


async def rendered(client: Client, model: str | None, messages: Sequence[Any]) -> Text | None:
    """Messages as the server's own chat template writes them; None where it does not tell."""
    root = client.endpoint.root
    try:
        # llama.cpp: without the BOS, which its tokenizer adds.
        found = await client.post(f"{root}/apply-template", {"messages": messages})
        return Text(str(found["prompt"]), True)
    except (Refused, KeyError, TypeError):
        pass
    try:
        # vLLM: token ids, and their text with the special tokens in it.
        asked = {"messages": messages, "add_generation_prompt": True}
        found = await client.post(f"{root}/tokenize", _with(model, asked))
        found = await client.post(f"{root}/detokenize", _with(model, {"tokens": found["tokens"]}))
        return Text(str(found["prompt"]), False)
    except (Refused, KeyError, TypeError):
        return None


async def by_echo(
    client: Client, model: str | None, context: Text, choices: Sequence[str]
) -> tuple[float, ...]:
    """Log-likelihood of each choice after the context; raises `BadInput` where the server does not
    repeat its prompts."""
    # What the context ends with belongs to the choice.
    _, first = await _echoed(client, model, context.text.rstrip(), context.special)
    found: list[float] = []
    for choice in choices:
        values, count = await _echoed(client, model, context.text + choice, context.special)
        scored = values[min(first, count - 1) : count]
        if not scored or None in scored:
            raise BadInput(f"The server at {client.endpoint.api} repeats only part of a prompt.")
        found.append(math.fsum(cast("list[float]", scored)))
    return tuple(found)


async def _echoed(
    client: Client, model: str | None, text: str, special: bool
) -> tuple[list[float | None], int]:
    """The log-probabilities of a text's tokens and of the one that is generated, and how many are
    the text's."""
    asked = {
        "prompt": text,
        "echo": True,
        "logprobs": 1,
        # Not all servers know how to generate none.
        "max_tokens": 1,
        "temperature": 0,
        # vLLM's; unknown to others, which pass over it.
        **({} if special else {"add_special_tokens": False}),
    }
    found = await client.post(f"{client.endpoint.api}/completions", _with(model, asked))
    try:
        values = cast("list[Any]", found["choices"][0]["logprobs"]["token_logprobs"])
        count = found["usage"]["prompt_tokens"]
        values = [_number(value) for value in values]
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"The server at {client.endpoint.api} repeats no prompts.") from error
    if not isinstance(count, int) or len(values) < count or count < 1:
        raise BadInput(f"The server at {client.endpoint.api} repeats no prompts.")
    return values, count


async def by_next_tokens(
    client: Client, model: str | None, context: Text, choices: Sequence[str]
) -> tuple[float, ...]:
    """Log-likelihood of each choice after the context, a request for every token of theirs;
    raises `BadInput` where llama.cpp does not know one of them."""
    del model  # This server has one.
    first = len(await _ids(client, context.text.rstrip()))
    known: dict[tuple[int, ...], Mapping[int, float]] = {}
    found: list[float] = []
    for choice in choices:
        ids = await _ids(client, context.text + choice)
        parts: list[float] = []
        for place in range(min(first, len(ids) - 1), len(ids)):
            before, token = tuple(ids[:place]), ids[place]
            for many in (_MANY, _ALL):
                if token not in known.get(before, {}):
                    known[before] = await _next_tokens(client, before, many)
            if token not in known[before]:
                raise BadInput(
                    f"The server at {client.endpoint.api} tells no probability of token {token}."
                )
            parts.append(known[before][token])
        found.append(math.fsum(parts))
    return tuple(found)


async def _ids(client: Client, text: str) -> list[int]:
    """llama.cpp's tokens of a text, cut as it cuts a prompt."""
    asked = {"content": text, "add_special": True, "parse_special": True}
    found = await client.post(f"{client.endpoint.root}/tokenize", asked)
    ids: Any = cast("dict[str, Any]", found).get("tokens") if isinstance(found, dict) else None
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in cast("list[Any]", ids)):
        raise BadInput(f"The server at {client.endpoint.api} tells no token ids.")
    return cast("list[int]", ids)


async def _next_tokens(client: Client, before: Sequence[int], many: int) -> dict[int, float]:
    """Log-probabilities of what may follow, by token id."""
    asked = {"prompt": list(before), "n_predict": 1, "n_probs": many, "temperature": 0}
    found = await client.post(f"{client.endpoint.root}/completion", asked)
    try:
        row = found["completion_probabilities"][0]["top_logprobs"]
        pairs = [(entry["id"], _number(entry["logprob"])) for entry in row]
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"The server at {client.endpoint.api} tells no probabilities.") from error
    return {token: value for token, value in pairs if value is not None}


def _number(value: Any) -> float | None:
    """A log-probability; None for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _with(model: str | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**asked, "model": model} if model is not None else dict(asked)
