"""Log-likelihoods of choices, from servers whose model is a table: every token's is minus its place
in the text, so that sums tell which tokens were counted."""

from __future__ import annotations

import re
from typing import Any

import pytest

from remerge.engines.endpoint import Asked, Endpoint, Reply, ask
from tests.engines.model_server import ModelServer, Raw, failing

TEXT = "/v1/completions"


def cut(text: str) -> list[str]:
    """Words with the white space before them, white space alone where nothing follows."""
    return re.findall(r"\s*\S+|\s+", text)


def echoing(path: str, body: dict[str, Any], before: int) -> Any:
    """vLLM: repeats prompts, and tells how its template writes messages."""
    if path == TEXT and body.get("echo"):
        special = ["<s>"] if body.get("add_special_tokens", True) else []
        tokens = [*special, *cut(body["prompt"])]
        values = [None, *(-float(place) for place in range(1, len(tokens))), -99.0]
        return {
            "choices": [{"text": body["prompt"] + "!", "logprobs": {"token_logprobs": values}}],
            "usage": {"prompt_tokens": len(tokens)},
        }
    if path == "/tokenize":
        if "messages" not in body:
            return failing(400, "missing")
        return {"tokens": [len(body["messages"])], "count": 1}
    if path == "/detokenize":
        return {"prompt": "<s> user: hi bot: "}
    return None


class Llama:
    """llama.cpp: ids are places in a list of tokens as they came, of 50 in all."""

    def __init__(self) -> None:
        self.tokens: list[str] = ["<s>"]
        self.far = False

    def __call__(self, path: str, body: dict[str, Any], before: int) -> Any:
        if path == "/tokenize" and "content" in body:
            words = ["<s>", *cut(body["content"])]
            self.tokens += [word for word in dict.fromkeys(words) if word not in self.tokens]
            return {"tokens": [self.tokens.index(word) for word in words]}
        if path == "/apply-template":
            return {"prompt": " user: hi bot:"}
        if path == "/completion":
            place = len(body["prompt"])
            row = [{"id": n, "logprob": -float(place)} for n in range(50)]
            if self.far and body["n_probs"] <= 1000:
                row = row[:1]
            return {"completion_probabilities": [{"top_logprobs": row}]}
        if path == TEXT and body.get("echo"):
            return failing(400, "Only no echo is supported")
        return None


def replies(server: ModelServer, *questions: Asked) -> tuple[list[Reply], tuple[str, ...]]:
    found: dict[int, Reply] = {}
    endpoint = Endpoint(server.url, pause=0.01, timeout=5, retries=1, key=None)
    notes = ask(endpoint, questions, found.__setitem__).notes
    return [found[number] for number in range(len(questions))], notes


CHOICES = (" four", " five six", "")
MESSAGES = ({"role": "user", "content": "hi"},)


@pytest.mark.parametrize("way", ["echo", "llama.cpp"])
def test_the_tokens_after_the_prompt_are_summed(way: str):
    mood = echoing if way == "echo" else Llama()
    with ModelServer(mood=mood) as server:
        (reply,), notes = replies(server, Asked("one two three", choices=CHOICES))
        # <s> one two three: the choice begins at place 4. Of an empty one the last token counts.
        assert reply.choices == (-4.0, -4.0 - 5.0, -3.0)
        assert (reply.text, notes) == ("", ())
        assert not [body for body in server.asked(TEXT) if "echo" not in body]


@pytest.mark.parametrize("way", ["echo", "llama.cpp"])
def test_white_space_at_the_end_belongs_to_the_choice(way: str):
    mood = echoing if way == "echo" else Llama()
    with ModelServer(mood=mood) as server:
        (reply,), _ = replies(server, Asked("one two ", choices=("three", "three four")))
        assert reply.choices == (-3.0, -3.0 - 4.0)


def test_messages_are_rendered_by_the_server():
    with ModelServer(mood=echoing) as server:
        (reply,), notes = replies(server, Asked(messages=MESSAGES, choices=("yes", "oh no")))
        # vLLM's text has its special token already: <s> user: hi bot: yes.
        assert reply.choices == (-4.0, -4.0 - 5.0) and notes == ()
    with ModelServer(mood=Llama()) as server:
        (reply,), notes = replies(server, Asked(messages=MESSAGES, choices=(" yes", " oh no")))
        # llama.cpp's has not, and its tokenizer puts it before.
        assert reply.choices == (-4.0, -4.0 - 5.0) and notes == ()


def test_an_answer_as_well():
    with ModelServer(mood=echoing) as server:
        asked = Asked("one two", choices=(" three",), max_tokens=3, likeliest=2)
        (reply,), _ = replies(server, asked)
    assert reply == Reply("two one", (-3.0,), {"two one": -0.5, "other": -1.5})


def test_unlikely_tokens_are_looked_for_among_all():
    llama = Llama()
    llama.far = True
    with ModelServer(mood=llama) as server:
        (reply,), _ = replies(server, Asked("one two three", choices=CHOICES))
        assert reply.choices == (-4.0, -9.0, -3.0)
        # One place is asked for once, whichever choice asks.
        asked = [(tuple(b["prompt"]), b["n_probs"]) for b in server.asked("/completion")[1:]]
        assert len(asked) == len(set(asked)) == 6


def unechoing(path: str, body: dict[str, Any], before: int) -> Any:
    """As a server that passes over ``echo``."""
    if path == TEXT and body.get("echo"):
        choice = {"text": "!", "logprobs": {"token_logprobs": [-0.1]}}
        return {"choices": [choice], "usage": {"prompt_tokens": 9}}
    return None


def unreadable(path: str, body: dict[str, Any], before: int) -> Any:
    return {"choices": [{"text": "x"}]} if path == TEXT and body.get("echo") else None


def crashing(path: str, body: dict[str, Any], before: int) -> Any:
    return failing(500, "echo") if path == TEXT and body.get("echo") else None


def refusing(path: str, body: dict[str, Any], before: int) -> Any:
    return failing(400, "no echo") if path == TEXT and body.get("echo") else None


@pytest.mark.parametrize("mood", [unechoing, unreadable, crashing, refusing])
def test_a_server_that_does_not_tell_is_asked_for_words(mood: Any):
    with ModelServer(mood=mood) as server:
        (reply,), notes = replies(server, Asked("one two", choices=CHOICES))
        assert reply == Reply("two one")
        assert len(notes) == 1 and "no log-likelihoods" in notes[0]
        assert server.asked(TEXT)[-1]["max_tokens"] == 32


def test_a_template_that_is_not_told():
    def mood(path: str, body: dict[str, Any], before: int) -> Raw | Any:
        return failing(404) if path in ("/tokenize", "/detokenize") else echoing(path, body, before)

    with ModelServer(mood=mood) as server:
        questions = (Asked(messages=MESSAGES, choices=("yes",)), Asked("a b", choices=(" c",)))
        (chat, text), notes = replies(server, *questions)
    assert (chat.choices, chat.text) == (None, "HI")
    assert text.choices == (-3.0,)
    assert len(notes) == 1 and "template" in notes[0]
