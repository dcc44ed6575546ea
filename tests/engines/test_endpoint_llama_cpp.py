"""A real llama.cpp server answers the example's task as transformers does, and says as much of its
probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import remerge
from remerge.engines.endpoint import Asked, Endpoint, Reply, ask, repeats_prompts, served
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput
from tests.engines.llama_server import llama_server
from tests.engines.places import needs

pytestmark = [*needs("llama.cpp"), pytest.mark.xdist_group("llama.cpp server")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "merged"
    remerge.merge(EXAMPLES / "base", EXAMPLES / "adapters" / "sort", out, dtype="float32")
    return out


@pytest.fixture(scope="module")
def server(merged: Path) -> Iterator[Endpoint]:
    with llama_server(merged) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def model(merged: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(merged: Path) -> Any:
    return open_tokenizer(merged)


def rows(count: int) -> list[dict[str, str]]:
    lines = (EXAMPLES / "eval" / "sort.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def message(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def context_of(tokenizer: Any, text: str) -> str:
    return tokenizer.apply_chat_template(
        [*message(text)], tokenize=False, add_generation_prompt=True
    )


def answers(server: Endpoint, questions: list[Asked]) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    assert ask(server, questions, found.__setitem__).notes == ()
    return found


def test_greedy_answers_are_those_of_transformers(server: Endpoint, model: Any, tokenizer: Any):
    asked = rows(40)
    questions = [Asked(messages=message(row["prompt"]), max_tokens=12) for row in asked]
    found = answers(server, questions)
    for number, row in enumerate(asked):
        ids = tokenizer(context_of(tokenizer, row["prompt"]), add_special_tokens=False)
        with torch.no_grad():
            written = model.generate(
                torch.tensor([ids["input_ids"]]), max_new_tokens=12, do_sample=False
            )
        tail = written[0, len(ids["input_ids"]) :]
        assert found[number].text == tokenizer.decode(tail, skip_special_tokens=True)
    right = sum(found[n].text == row["expected"] for n, row in enumerate(asked))
    assert right >= 0.9 * len(asked)


def test_log_likelihoods_are_those_of_transformers(server: Endpoint, model: Any, tokenizer: Any):
    choices = ("048999", " the end", "日é")
    questions = [
        Asked(messages=message("Sort the digits: 499089"), choices=choices, likeliest=3),
        Asked("Sort the digits: ", choices=choices),
    ]
    found = answers(server, questions)
    rendered = context_of(tokenizer, "Sort the digits: 499089")
    for number, (context, special) in enumerate([(rendered, False), ("Sort the digits: ", True)]):
        first = len(tokenizer(context.rstrip(), add_special_tokens=special)["input_ids"])
        expected: list[float] = []
        for choice in choices:
            ids = tokenizer(context + choice, add_special_tokens=special)["input_ids"]
            with torch.no_grad():
                values = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected.append(sum(float(values[i - 1, ids[i]]) for i in range(first, len(ids))))
        assert found[number].choices == pytest.approx(expected, abs=0.03)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).topk(3)
    told = {tokenizer.decode([int(i)]): float(v) for v, i in zip(*best, strict=True)}
    assert found[0].likeliest == pytest.approx(told, abs=0.03)


def test_what_it_says_of_itself(server: Endpoint):
    found = served(server)
    assert found.owner == "llamacpp" and found.model in found.models
    # So lm-eval cannot have likelihoods of it.
    assert not repeats_prompts(server)


def test_a_question_that_is_too_long(server: Endpoint):
    with pytest.raises(BadInput, match=r"Question 1 .* is too long"):
        answers(server, [Asked("word " * 3000, max_tokens=1)])
