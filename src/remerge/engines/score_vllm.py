"""Run in vLLM's environment: a checkpoint scored and answered to by vLLM's own engine, in float32.

vLLM tells log-probabilities as objects, one a token: of a small vocabulary all of them, of a large
one the likeliest. A checkpoint that loads and whose kernels then fail has loaded, and no more.
"""

# vLLM lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# One process, no network, nothing told to anybody; all processors and little memory for the cache.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
)

from remerge.engines.calling import Report, answer
from remerge.engines.scoring import Questions, put_likeliest
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory

# Log-probabilities that are told in all, which bounds memory and time.
_TOLD = 4_000_000
_FEWEST, _MOST = 20, 1024


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Score ``artefact`` into ``scores``; gives tokens and answers.

    Kernels for quantised weights often have no float32: these are tried in bfloat16 as well.
    """
    import torch
    import vllm

    questions, place = Questions.of(request), Path(request["artefact"])
    torch.set_num_threads(request.get("threads") or os.cpu_count() or 1)
    config = json.loads((place / "config.json").read_bytes())
    quantised = config.get("quantization_config") or config.get("compression_config")
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    found: dict[str, Any] = {}
    failures: list[str] = []
    for dtype in ("float32", "bfloat16") if quantised else ("float32",):
        model = None
        try:
            model = _load(place, questions, dtype)
            if not found:
                tokenizer = model.get_tokenizer()
                found["tokens"] = [list(tokenizer(text)["input_ids"]) for text in questions.texts]
            _score(model, questions, Path(request["scores"]), report)
            answers = _answers(model, questions)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, OSError) as error:
            failures.append(f"in {dtype} {_said(error)}")
        except (RuntimeError, TypeError, ValueError) as error:
            failures.append(f"in {dtype} {_said(error)}")
        else:
            notes = [f"vLLM computed in {dtype}: {failures[0]}"] if failures else []
            return {
                **found,
                "answers": answers,
                "notes": notes,
                "peak_memory": peak_memory(),
                "versions": versions,
            }
        del model
        gc.collect()
    if not found:
        raise BadInput(f"vLLM cannot load {place}: {'; '.join(failures)}")
    return {
        **found,
        "loaded_only": "; ".join(failures),
        "notes": [],
        "peak_memory": peak_memory(),
        "versions": versions,
    }


def _load(place: Path, questions: Questions, dtype: str) -> Any:
    import vllm

    return vllm.LLM(
        model=str(place),
        tokenizer=str(place),
        dtype=dtype,
        max_model_len=max(map(len, questions.prompts)) + max(questions.answer_tokens, 1),
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=-1,
        seed=0,
        disable_log_stats=True,
    )


def _score(model: Any, questions: Questions, path: Path, report: Report) -> None:
    wanted = max(_FEWEST, min(_MOST, _TOLD // max(questions.rows, 1)))
    vocabulary = model.llm_engine.model_config.get_vocab_size()
    rows = _rows(model, questions, -1 if vocabulary <= wanted else wanted, report)
    put_likeliest(path, rows, vocabulary)


def _rows(model: Any, questions: Questions, told: int, report: Report) -> list[dict[int, float]]:
    from vllm import SamplingParams

    asked = SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=told, logprobs=told, detokenize=False
    )
    rows: list[dict[int, float]] = []
    for number, prompt in enumerate(questions.prompts, 1):
        (said,) = model.generate([{"prompt_token_ids": list(prompt)}], asked, use_tqdm=False)
        # Nothing is told of the first token; the token that is generated tells of the last row.
        positions = [*said.prompt_logprobs[1:], said.outputs[0].logprobs[0]]
        rows += [{token: one.logprob for token, one in row.items()} for row in positions]
        report(number, len(questions.prompts), "prompts")
    return rows


def _answers(model: Any, questions: Questions) -> list[list[int]]:
    from vllm import SamplingParams

    if not questions.answers:
        return []
    asked = SamplingParams(temperature=0, max_tokens=questions.answer_tokens, detokenize=False)
    prompts = [{"prompt_token_ids": list(p)} for p in questions.prompts[: questions.answers]]
    said = model.generate(prompts, asked, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in said]


def _said(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _main() -> NoReturn:
    """Answer, and end at once: what vLLM leaves running is not waited for."""
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
