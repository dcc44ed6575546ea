"""Load on transformers, which serves nobody at once: as many prompts as are asked for at once stand
in one batch, and one batch follows the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from remerge.serving.bench.load import Answer, Tokens
from remerge.sources.documents import as_list, as_object


def put_batches(
    url: str,
    prompts: Sequence[Tokens],
    *,
    concurrency: int,
    max_tokens: int,
    adapted: bool,
    timeout: float,
) -> tuple[list[Answer], float]:
    """As `remerge.serving.bench.load.put_load`; all answers of a batch come at the same moments."""
    import httpx2

    found: list[Answer] = []
    with httpx2.Client(timeout=timeout, trust_env=False) as client:
        started = time.perf_counter()
        for first in range(0, len(prompts), concurrency):
            batch = prompts[first : first + concurrency]
            body = {
                "prompts": [list(prompt) for prompt in batch],
                "max_tokens": max_tokens,
                "adapted": adapted,
            }
            try:
                reply = client.post(f"{url}/batch", json=body)
                told = as_object(reply.json()) or {}
            except (httpx2.TransportError, httpx2.DecodingError, ValueError) as error:
                told = {"error": f"{type(error).__name__}: {error}".rstrip(": ")}
            found += [_answer(told, max_tokens)] * len(batch)
        seconds = time.perf_counter() - started
    return found, seconds


def _answer(told: Mapping[str, Any], max_tokens: int) -> Answer:
    steps = [float(step) for step in as_list(told.get("steps")) or ()]
    if "error" in told or len(steps) != max_tokens:
        fault = str(told.get("error", f"{len(steps)} tokens came, of {max_tokens}"))
        return Answer(0, None, (), fault)
    between = tuple(later - one for one, later in pairwise(steps))
    return Answer(len(steps), steps[0], between)
