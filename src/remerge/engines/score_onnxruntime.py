"""Run in ONNX Runtime's environment: a directory of onnxruntime-genai scored and answered to by its
own loop, a token at a time, as it serves.
"""

# onnxruntime-genai lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from remerge.engines.calling import Teller, answer
from remerge.engines.scoring import Answered, Item, Side, followed, rows_path, write_rows
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Ask the one side, ``artefact``; gives tokens."""
    import onnxruntime_genai as genai

    (side,), place = map(Side.of, request["sides"]), Path(request["artefact"])
    try:
        model = genai.Model(str(place))
        tokenizer = genai.Tokenizer(model)
    except (RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"onnxruntime-genai cannot load {place}: {said}") from error
    notes: list[str] = []
    stop = _ends(place)
    for done, number in enumerate(sorted(side.wanted), 1):
        found = _asked(genai, model, side.items[number], side.folder, stop)
        tell.part({"side": side.name, "item": number, **found.document()})
        tell(done, len(side.wanted), "prompts")
    texts = request["texts"]
    usual = _tokens(tokenizer, texts)
    tokenizer.update_options(add_special_tokens="true")
    tokens = _tokens(tokenizer, texts)
    if tokens != usual:
        notes.append(
            "onnxruntime-genai puts no special tokens (BOS) before a text by default: whoever "
            "calls it must, by its add_special_tokens or a chat template that has them."
        )
    return {
        "tokens": tokens,
        "notes": notes,
        "peak_memory": peak_memory(),
        "versions": {"onnxruntime-genai": version("onnxruntime-genai")},
    }


def _asked(genai: Any, model: Any, item: Item, folder: Path, stop: set[int]) -> Answered:
    parameters = genai.GeneratorParams(model)
    room = len(item.ids) + item.tokens + 1
    parameters.set_search_options(max_length=room, do_sample=False)
    generator = genai.Generator(model, parameters)
    rows: list[Any] = []
    for token in item.ids:
        generator.append_tokens([token])
        rows.append(_logits(generator))
    if item.kind == "rows":
        write_rows(rows_path(folder, item), np.concatenate(rows))
        return Answered()
    if item.kind == "followed":
        return Answered(followed=followed(np.concatenate(rows), item.ids))
    found: list[int] = []
    row = rows[-1]
    while len(found) < item.tokens:
        token = int(row.argmax())
        found.append(token)
        if token in stop:
            break
        generator.append_tokens([token])
        row = _logits(generator)
    return Answered(answer=tuple(found))


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [[int(token) for token in tokenizer.encode(text)] for text in texts]


def _logits(generator: Any) -> Any:
    """What comes after the tokens so far (1, tokens)."""
    return np.asarray(generator.get_logits(), np.float32).reshape(1, -1)


def _ends(place: Path) -> set[int]:
    found = json.loads((place / "genai_config.json").read_text())["model"].get("eos_token_id")
    return set(found) if isinstance(found, list) else {found}


if __name__ == "__main__":
    answer(work)
