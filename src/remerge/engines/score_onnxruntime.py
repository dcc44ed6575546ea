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

from remerge.engines.calling import Report, answer
from remerge.engines.scoring import Questions, ScoreFile
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Score ``artefact`` into ``scores``; gives tokens and answers."""
    import onnxruntime_genai as genai

    questions, place = Questions.of(request), Path(request["artefact"])
    try:
        model = genai.Model(str(place))
        tokenizer = genai.Tokenizer(model)
    except (RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"onnxruntime-genai cannot load {place}: {said}") from error
    file = ScoreFile(Path(request["scores"]), questions.rows)
    answers: list[list[int]] = []
    notes: list[str] = []
    stop = _ends(place)
    for number, prompt in enumerate(questions.prompts, 1):
        parameters = genai.GeneratorParams(model)
        wanted = questions.answer_tokens if number <= questions.answers else 0
        parameters.set_search_options(max_length=len(prompt) + wanted + 1, do_sample=False)
        generator = genai.Generator(model, parameters)
        row = None
        for token in prompt:
            generator.append_tokens([token])
            row = _logits(generator)
            file.put(row)
        found: list[int] = []
        while row is not None and len(found) < wanted:
            token = int(row.argmax())
            found.append(token)
            if token in stop:
                break
            generator.append_tokens([token])
            row = _logits(generator)
        if wanted:
            answers.append(found)
        report(number, len(questions.prompts), "prompts")
    file.close()
    usual = _tokens(tokenizer, questions)
    tokenizer.update_options(add_special_tokens="true")
    tokens = _tokens(tokenizer, questions)
    if tokens != usual:
        notes.append(
            "onnxruntime-genai puts no special tokens (BOS) before a text by default: whoever "
            "calls it must, by its add_special_tokens or a chat template that has them."
        )
    return {
        "tokens": tokens,
        "answers": answers,
        "notes": notes,
        "peak_memory": peak_memory(),
        "versions": {"onnxruntime-genai": version("onnxruntime-genai")},
    }


def _tokens(tokenizer: Any, questions: Questions) -> list[list[int]]:
    return [[int(token) for token in tokenizer.encode(text)] for text in questions.texts]


def _logits(generator: Any) -> Any:
    """What comes after the tokens so far (1, tokens)."""
    return np.asarray(generator.get_logits(), np.float32).reshape(1, -1)


def _ends(place: Path) -> set[int]:
    found = json.loads((place / "genai_config.json").read_text())["model"].get("eos_token_id")
    return set(found) if isinstance(found, list) else {found}


if __name__ == "__main__":
    answer(work)
