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
from collections.abc import Callable, Mapping
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

from remerge.engines.calling import Teller, answer
from remerge.engines.scoring import Answered, Item, Side, rows_path, write_likeliest
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory

Give = Callable[[int, Answered], None]

# Log-probabilities that are told in all, which bounds memory and time.
_TOLD = 4_000_000
_FEWEST, _MOST = 20, 1024


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Ask the one side, ``artefact``; gives tokens.

    Kernels for quantised weights often have no float32: these are tried in bfloat16 as well.
    """
    import torch
    import vllm

    (side,), place = map(Side.of, request["sides"]), Path(request["artefact"])
    torch.set_num_threads(request.get("threads") or os.cpu_count() or 1)
    config = json.loads((place / "config.json").read_bytes())
    quantised = config.get("quantization_config") or config.get("compression_config")
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    found: dict[str, Any] = {"notes": [], "versions": versions}
    failures: list[str] = []
    items = {number: side.items[number] for number in sorted(side.wanted)}
    given: set[int] = set()

    def give(number: int, answered: Answered) -> None:
        given.add(number)
        tell.part({"side": side.name, "item": number, **answered.document()})
        tell(len(given), len(items), "prompts")

    for dtype in ("float32", "bfloat16") if quantised else ("float32",):
        model = None
        try:
            model = _load(place, items, dtype)
            if "tokens" not in found:
                tokenizer = model.get_tokenizer()
                found["tokens"] = [list(tokenizer(text)["input_ids"]) for text in request["texts"]]
            _score(model, items, side.folder, give)
            _answers(model, items, give)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, OSError) as error:
            failures.append(f"in {dtype} {_said(error)}")
        except (RuntimeError, TypeError, ValueError) as error:
            failures.append(f"in {dtype} {_said(error)}")
        else:
            notes = [f"vLLM computed in {dtype}: {failures[0]}"] if failures else []
            return {**found, "notes": notes, "peak_memory": peak_memory()}
        del model
        gc.collect()
    if "tokens" not in found:
        raise BadInput(f"vLLM cannot load {place}: {'; '.join(failures)}")
    return {**found, "loaded_only": "; ".join(failures), "peak_memory": peak_memory()}


def _load(place: Path, items: Mapping[int, Item], dtype: str) -> Any:
    import vllm

    return vllm.LLM(
        model=str(place),
        tokenizer=str(place),
        dtype=dtype,
        max_model_len=max(len(item.ids) + max(item.tokens, 1) for item in items.values()),
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=-1,
        seed=0,
        disable_log_stats=True,
    )


def _score(model: Any, items: Mapping[int, Item], folder: Path, give: Give) -> None:
    from vllm import SamplingParams

    positions = sum(len(item.ids) for item in items.values() if item.kind == "rows")
    told = max(_FEWEST, min(_MOST, _TOLD // max(positions, 1)))
    vocabulary = model.llm_engine.model_config.get_vocab_size()
    told = -1 if vocabulary <= told else told
    for number, item in items.items():
        if item.kind == "answer":
            continue
        # The prompt's own tokens are told whatever their rank.
        wanted = told if item.kind == "rows" else 1
        asked = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=wanted, logprobs=wanted, detokenize=False
        )
        (said,) = model.generate([{"prompt_token_ids": list(item.ids)}], asked, use_tqdm=False)
        # Nothing is told of the first token; the token that is generated tells of the last row.
        positions = [*said.prompt_logprobs[1:], said.outputs[0].logprobs[0]]
        rows = [{token: one.logprob for token, one in row.items()} for row in positions]
        if item.kind == "rows":
            write_likeliest(rows_path(folder, item), rows, item.ids, vocabulary)
            give(number, Answered())
        else:
            pairs = zip(rows, item.ids[1:], strict=False)
            give(number, Answered(followed=tuple(row[token] for row, token in pairs)))


def _answers(model: Any, items: Mapping[int, Item], give: Give) -> None:
    from vllm import SamplingParams

    asked = {number: item for number, item in items.items() if item.kind == "answer"}
    if not asked:
        return
    prompts = [{"prompt_token_ids": list(item.ids)} for item in asked.values()]
    each = [
        SamplingParams(temperature=0, max_tokens=item.tokens, detokenize=False)
        for item in asked.values()
    ]
    for number, said in zip(asked, model.generate(prompts, each, use_tqdm=False), strict=True):
        give(number, Answered(answer=tuple(said.outputs[0].token_ids)))


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
