"""lm-eval's tasks on one model: runs in lm-eval's environment, and never asks the network.

The request: ``side`` is {"directory", "tokenizer", "peft", "vocabulary"} for a checkpoint and an
adapter on it through PEFT, or {"url", "model", "tokenizer", "concurrency"} for a server; then
``tasks`` (names, patterns, YAML files), ``include_path``, ``limit``, ``num_fewshot``,
``batch_size``, ``dtype``, ``device`` and ``chat``.

The result: ``scores`` {task: {metric: [value, standard error or None]}}, groups among the tasks;
``samples`` {task: {metric: {document: value}}} for metrics that a document has by itself;
``higher`` {task: {metric: whether more is better}}; ``notes``, ``seconds``, ``peak_memory``,
``versions``. A metric is named as lm-eval names it, with its filter unless that is none.
"""

# lm-eval lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from remerge.engines.calling import Teller, answer
from remerge.engines.endpoint_client import Endpoint, environment_key
from remerge.errors import BadInput, RemergeError, Unsupported, UsageError
from remerge.merging.budget import peak_memory

# Of metrics whose standard error has no formula; lm-eval's own 100,000 takes minutes.
_RESAMPLED = 1000
_WRITTEN = "generate_until"


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Evaluate the side on the tasks.

    Raises `UsageError` for a task that there is not, `Unsupported` for one that runs what a model
    writes or that a server cannot answer, `BadInput` for a model or data that cannot be loaded.
    """
    started = time.monotonic()
    # Before lm-eval is imported, which reads them then.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    os.environ.pop("HF_ALLOW_CODE_EVAL", None)
    with tempfile.TemporaryDirectory(prefix="remerge-") as place:
        notes: list[str] = []
        tell(0, 3, "tasks")
        loaded = _tasks(request["tasks"], request.get("include_path"), Path(place))
        _refuse_unsafe(loaded)
        tell(1, 3, "model")
        side = request["side"]
        model = _server(side, loaded, notes) if "url" in side else _model(side, request)
        tell(2, 3, "questions")
        found = _evaluated(model, loaded, request)
    return {
        **_figures(found),
        "notes": notes,
        "seconds": time.monotonic() - started,
        "peak_memory": peak_memory(),
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "peft", "torch")},
    }


def _tasks(names: Sequence[str], include: str | None, place: Path) -> Mapping[str, Any]:
    """Tasks and groups with their data: files are read into ``place``, which is empty, and what is
    not in files comes from the user's own cache."""
    import datasets
    from lm_eval.tasks import TaskManager

    if include is not None and not Path(include).is_dir():
        raise UsageError(
            f"There is no directory {include}.",
            hint="A task of one file can be named by its path, among the tasks.",
        )
    # lm-eval's own are 14,000 files to read.
    managers = (
        lambda: TaskManager(include_path=include, include_defaults=False),
        lambda: TaskManager(include_path=include),
    )
    users = datasets.config.HF_DATASETS_CACHE
    failure: Exception | None = None
    for number, manager in enumerate(managers):
        tasks = manager()
        wanted = _matching(names, tasks, is_last=number == len(managers) - 1)
        if wanted is None:
            continue
        for cache in (place, users):
            datasets.config.HF_DATASETS_CACHE = Path(cache)
            try:
                return tasks.load(wanted)
            except (KeyError, ValueError) as error:
                # A group of the user's may have tasks of lm-eval's; and a missing file of data is a
                # ValueError.
                failure = failure or error
            except Exception as error:
                failure = error
    assert failure is not None
    raise _unloadable(names, failure) from failure


def _matching(names: Sequence[str], tasks: Any, *, is_last: bool) -> list[str] | None:
    """What the names stand for; None where some stand for nothing and this is not the last try."""
    wanted: list[str] = []
    for name in names:
        if Path(name).is_file():
            found = [str(Path(name).absolute())]
        else:
            found = [name] if name in tasks.all_tasks else tasks.match_tasks([name])
        if not found:
            if not is_last:
                return None
            near = difflib.get_close_matches(name, tasks.all_tasks, 5, 0.5)
            raise UsageError(
                f"lm-eval has no task {name!r}.",
                why=f"There are {', '.join(near)}." if near else None,
                hint="Name the directory of a task of your own with --lm-eval-include.",
            )
        wanted += [one for one in found if one not in wanted]
    return wanted


def _unloadable(names: Sequence[str], error: Exception) -> RemergeError:
    said = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    return BadInput(
        f"lm-eval cannot load {', '.join(names)}: {said}.",
        why="Its data may not be on this machine: nothing is fetched.",
        hint="Evaluate it once with lm-eval itself, which fetches it, or name a task with data in "
        "files (dataset_path: json).",
    )


def _refuse_unsafe(loaded: Mapping[str, Any]) -> None:
    """Tasks that run what a model wrote are not run here."""
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task.config, "unsafe_code", False):
            raise Unsupported(
                f"The task {name} runs programs that the model writes.",
                hint="Run it with lm-eval itself, where that can do no harm.",
            )


def _model(side: Mapping[str, Any], request: Mapping[str, Any]) -> Any:
    """A checkpoint as transformers reads it, with an adapter on it as PEFT puts it there.

    Not by lm-eval's own ``peft=``, which shrinks embeddings to the tokenizer's size and with them
    the distribution that is compared.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    directory = side["directory"]
    device = request.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(side.get("tokenizer") or directory, **local)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=request.get("dtype") or "auto", **local
        )
        if side.get("peft"):
            from peft import PeftModel

            rows = side.get("vocabulary")
            if rows and rows != model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(rows, mean_resizing=False)
            model = PeftModel.from_pretrained(model, side["peft"], local_files_only=True)
        if not getattr(model, "hf_device_map", None):
            model = model.to(device)
        model.eval()
        return HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=request.get("batch_size") or 8
        )
    except MemoryError:
        raise
    except Exception as error:
        parts = [directory, *([side["peft"]] if side.get("peft") else [])]
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise BadInput(
            f"lm-eval's environment cannot load {' with '.join(parts)}: {said}.",
            why=f"{type(error).__name__}; a quantised checkpoint may need a package that it lacks.",
            hint="--engine-python lm-eval=PATH takes an interpreter of your own.",
        ) from error


def _server(side: Mapping[str, Any], loaded: Mapping[str, Any], notes: list[str]) -> Any:
    """A server, whose tokenizer lies in a directory here."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.models.utils import has_bos_prefix

    from remerge.engines.endpoint import repeats_prompts, served

    class Server(LocalCompletionsAPI):
        """Cuts texts as `HFLM` does: with the special tokens of the tokenizer's own, and no second
        BOS. lm-eval's own leaves them out of servers' prompts, which then are other ones."""

        def tok_encode(
            self,
            string: Any,
            left_truncate_len: int | None = None,
            add_special_tokens: bool | None = None,
            **_: Any,
        ) -> Any:
            if not isinstance(string, str):
                return [self.tok_encode(s, left_truncate_len, add_special_tokens) for s in string]
            first = self.tokenizer.bos_token or self.tokenizer.eos_token
            special = add_special_tokens is not False and not has_bos_prefix(string, first)
            ids = self.tokenizer(string, add_special_tokens=special)["input_ids"]
            return ids[-left_truncate_len:] if left_truncate_len else ids

    endpoint = Endpoint(side["url"], side.get("model"), concurrency=side.get("concurrency") or 1)
    scored = [name for name, task in loaded["tasks"].items() if _kind_of(task) != _WRITTEN]
    model = served(endpoint).model
    # llama.cpp's passes over ``echo``, and every choice is then as likely as any other.
    if scored and not repeats_prompts(endpoint):
        raise Unsupported(
            f"The server at {endpoint.api} does not tell how likely a given text is, which "
            f"{', '.join(scored[:5])} would need.",
            why="vLLM tells; llama.cpp's server does not.",
            hint="Choose tasks in which the model writes (generate_until), or compare the "
            "checkpoint.",
        )
    # It looks there for the key, and nowhere else.
    os.environ["OPENAI_API_KEY"] = environment_key() or ""
    length = _length(Path(side["tokenizer"]))
    if length is None:
        notes.append("How long the server's context is, is not known here: 2048 is assumed.")
    return Server(
        base_url=f"{endpoint.api}/completions",
        model=model,
        tokenizer_backend="huggingface",
        tokenizer=side["tokenizer"],
        # Of what it writes: texts as the tokenizer cuts them, see above.
        add_bos_token=True,
        num_concurrent=endpoint.concurrency,
        max_length=length or 2048,
    )


def _length(directory: Path) -> int | None:
    """How many tokens a model reads, as its config says."""
    try:
        config = json.loads((directory / "config.json").read_text())
        found = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 1 else None


def _kind_of(task: Any) -> str:
    return str(task.get_config("output_type"))


def _evaluated(
    model: Any, loaded: Mapping[str, Any], request: Mapping[str, Any]
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate

    class Loaded:
        """The tasks as they were loaded: with data, it takes long."""

        task_index: Mapping[str, Any] = {}

        def load(self, _: Any) -> Mapping[str, Any]:
            return loaded

    try:
        found = simple_evaluate(
            model=model,
            tasks=list(loaded["tasks"]),
            task_manager=Loaded(),  # type: ignore[arg-type]
            limit=request.get("limit"),
            num_fewshot=request.get("num_fewshot"),
            apply_chat_template=bool(request.get("chat")),
            bootstrap_iters=_RESAMPLED,
            log_samples=True,
            confirm_run_unsafe_code=False,
        )
    except (RemergeError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise BadInput(
            f"lm-eval cannot evaluate {', '.join(loaded['tasks'])}: {said}.",
            why=f"{type(error).__name__}; the task, or what it was evaluated on, may be at fault.",
        ) from error
    assert found is not None
    return found


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller needs of lm-eval's results."""
    scores: dict[str, dict[str, list[float | None]]] = {}
    higher: dict[str, dict[str, bool | None]] = {}
    for task, figures in {**found["results"], **found.get("groups", {})}.items():
        for key, value in figures.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = figures.get(f"{metric}_stderr,{kind}")
            name = _named(metric, kind)
            error = float(error) if _is_number(error) else None
            scores.setdefault(task, {})[name] = [float(value), error]
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            higher.setdefault(task, {})[name] = better
    samples: dict[str, dict[str, dict[str, float]]] = {}
    for task, rows in (found.get("samples") or {}).items():
        for row in rows:
            for metric in row["metrics"]:
                if _is_number(row.get(metric)):
                    name = _named(metric, row["filter"])
                    values = samples.setdefault(task, {}).setdefault(name, {})
                    values[str(row["doc_id"])] = float(row[metric])
    return {"scores": scores, "samples": samples, "higher": higher}


def _named(metric: str, kind: str) -> str:
    return metric if re.fullmatch("none|", kind) else f"{metric},{kind}"


def _is_number(value: Any) -> bool:
    """Whether it is one, of Python or of numpy."""
    try:
        return not isinstance(value, str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


if __name__ == "__main__":
    answer(work)
