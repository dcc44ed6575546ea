"""Run in llama.cpp's environment: a GGUF file scored by llama.cpp and asked through its own server.

Log-probabilities of all positions come from its C interface, with a cache in float32, so that they
tell of the file; the server, with the defaults that users have, then answers, and what it says of
the likeliest tokens is compared with them.
"""

# xllamacpp has no types, and lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from remerge.engines.calling import Teller, answer
from remerge.engines.llama_library import F32, Batch, LlamaLibrary, open_library
from remerge.engines.scoring import Answered, Item, Side, followed, rows_path, write_rows
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory

Give = Callable[[int, Answered], None]

# Tokens whose log-probabilities the server is asked for.
_LIKELIEST = 20
_TIMEOUT = 600
# The server is not let go: its destructor can wait for its own threads for ever.
_KEPT: list[Any] = []


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Ask the one side, ``artefact``; gives tokens, and what the server said after each prompt that
    it answered."""
    (side,), file = map(Side.of, request["sides"]), Path(request["artefact"])
    scored = {n: i for n, i in side.of_kind("rows", "followed").items() if n in side.wanted}
    answered = {n: i for n, i in side.of_kind("answer").items() if n in side.wanted}
    total, done = len(scored) + len(answered), 0

    def give(number: int, found: Answered) -> None:
        nonlocal done
        done += 1
        tell.part({"side": side.name, "item": number, **found.document()})
        tell(done, total, "prompts")

    library = open_library()
    with library.model(file) as model:
        tokens = [library.tokens(model, text) for text in request["texts"]]
        file_type = library.metadata(model, "general.file_type")
        if scored:
            _score(library, model, scored, side.folder, give)
    served = _ask(file, answered, request.get("threads"), give) if answered else []
    return {
        "tokens": tokens,
        "served": served,
        "file_type": None if file_type is None else int(file_type),
        "notes": [],
        "peak_memory": peak_memory(),
        "versions": {"llama.cpp": f"xllamacpp {version('xllamacpp')}"},
    }


def _score(
    library: LlamaLibrary, model: Any, items: Mapping[int, Item], folder: Path, give: Give
) -> None:
    calls = library.functions
    width = calls.llama_vocab_n_tokens(calls.llama_model_get_vocab(model))
    longest = max(len(item.ids) for item in items.values())
    wanted = calls.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = max(longest, 32)
    wanted.n_outputs_max = wanted.n_outputs_max_per_seq = 0
    wanted.type_k = wanted.type_v = F32
    wanted.flash_attn_type = 0
    context = calls.llama_init_from_model(model, wanted)
    if not context:
        raise BadInput(f"llama.cpp makes no context for this model: {library.said}.")
    try:
        for number, item in items.items():
            calls.llama_memory_clear(calls.llama_get_memory(context), True)
            # What the batch points to must live as long as it.
            batch, _kept = _batch(item.ids)
            if calls.llama_decode(context, batch) != 0:
                raise BadInput(f"llama.cpp cannot compute prompt {number}: {library.said}.")
            logits = calls.llama_get_logits(context)
            rows = np.ctypeslib.as_array(logits, shape=(len(item.ids), width))
            if item.kind == "rows":
                write_rows(rows_path(folder, item), rows)
                give(number, Answered())
            else:
                give(number, Answered(followed=followed(rows, item.ids)))
    finally:
        calls.llama_free(context)


def _batch(prompt: tuple[int, ...]) -> tuple[Batch, list[Any]]:
    """One prompt, all of whose positions are asked for."""
    count, number = len(prompt), ctypes.c_int32
    sequence = (number * 1)(0)
    pointer = ctypes.POINTER(number)
    kept: list[Any] = [
        (number * count)(*prompt),
        (number * count)(*range(count)),
        (number * count)(*[1] * count),
        (pointer * count)(*[ctypes.cast(sequence, pointer)] * count),
        (ctypes.c_int8 * count)(*[1] * count),
        sequence,
    ]
    return Batch(count, kept[0], None, *kept[1:5]), kept


def _ask(
    file: Path, items: Mapping[int, Item], threads: int | None, give: Give
) -> list[dict[str, Any]]:
    """Greedy answers of the server; gives the likeliest tokens that it saw after each prompt."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    room = max(len(item.ids) + item.tokens for item in items.values()) + 8
    parameters.n_ctx, parameters.n_parallel = max(room, 64), 1
    parameters.warmup = False
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    if threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    _KEPT.append(server)
    served: list[dict[str, Any]] = []
    for number, item in items.items():
        told = _post(
            f"{server.listening_address}/completion",
            {
                "prompt": list(item.ids),
                "n_predict": item.tokens,
                "temperature": 0,
                "n_probs": _LIKELIEST,
                "return_tokens": True,
                "cache_prompt": False,
            },
        )
        give(number, Answered(answer=tuple(told["tokens"])))
        first = told["completion_probabilities"][0]["top_logprobs"]
        served.append({str(entry["id"]): entry["logprob"] for entry in first})
    return served


def _post(address: str, question: Mapping[str, Any]) -> dict[str, Any]:
    body = json.dumps(question).encode()
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    # A proxy of the caller's environment has no business with this machine's own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(asked, timeout=_TIMEOUT) as stream:
        return json.load(stream)


def _main() -> NoReturn:
    code = 1
    try:
        answer(work)
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main()
