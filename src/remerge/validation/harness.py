"""lm-eval's tasks on base, adapter on base and merged, one after the other, side by side.

Each side is a process of its own in lm-eval's environment, so that one model at a time is in
memory. Tasks, seeds and few-shot examples are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from remerge.artefacts.test_result import HarnessResult
from remerge.engines.calling import Note, Report, call
from remerge.engines.endpoint_client import Endpoint
from remerge.engines.environments import python_of
from remerge.engines.lm_eval import LM_EVAL
from remerge.errors import BadInput, Unsupported, UsageError

_MODULE = "remerge.engines.evaluate_lm_eval"


@dataclass(frozen=True)
class Side:
    """What is evaluated: the checkpoint in ``directory``, with the ``adapter`` of a PEFT directory
    on it or without. ``tokenizer`` is another directory where the checkpoint's own is not meant,
    and ``vocabulary`` the rows that embeddings must have for the adapter.

    With a ``server``, that is asked, and ``directory`` only gives tokenizer and length of context.
    Its key is the environment's.
    """

    directory: Path
    adapter: Path | None = None
    tokenizer: Path | None = None
    vocabulary: int | None = None
    server: Endpoint | None = None

    def as_request(self) -> dict[str, Any]:
        """As `remerge.engines.evaluate_lm_eval` reads it."""
        tokenizer = str((self.tokenizer or self.directory).absolute())
        if self.server is not None:
            return {
                "url": self.server.url,
                "model": self.server.model,
                "concurrency": self.server.concurrency,
                "tokenizer": tokenizer,
            }
        return {
            "directory": str(self.directory.absolute()),
            "tokenizer": tokenizer,
            "peft": None if self.adapter is None else str(self.adapter.absolute()),
            "vocabulary": self.vocabulary,
        }


def adapted(base: Path, adapter: Path, merged: Path) -> Side:
    """The adapter on its base: with the adapter's tokenizer where it brings one, and embeddings of
    as many rows as in the merge."""
    rows = _vocabulary(merged)
    brings = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = adapter if brings else base
    return Side(base, adapter, tokenizer, rows if rows != _vocabulary(base) else None)


@dataclass(frozen=True)
class HarnessSettings:
    """What lm-eval is asked: names, patterns or YAML files of ``tasks`` (groups too), of its own or
    in ``include_path``; the first ``limit`` documents of each; ``chat`` applies the chat template.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    dtype: str = "auto"
    device: str | None = None
    chat: bool = False

    def as_request(self) -> dict[str, Any]:
        """As `remerge.engines.evaluate_lm_eval` reads it."""
        include = self.include_path
        return {
            "tasks": list(self.tasks),
            "include_path": None if include is None else str(include.absolute()),
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.device,
            "chat": self.chat,
        }


@dataclass(frozen=True)
class Paired:
    """Documents that are right or wrong: of ``documents``, the adapter alone has ``lost`` right,
    the merged model alone ``won``."""

    documents: int
    lost: int
    won: int


@dataclass(frozen=True)
class Harness:
    """A comparison by lm-eval. ``paired`` and ``higher`` are by task and metric: the former has
    those whose every document is 0 or 1, the latter whether more is better, None where lm-eval does
    not say. ``seconds`` and ``peak_memory`` (bytes) are by side."""

    results: tuple[HarnessResult, ...]
    paired: Mapping[tuple[str, str], Paired]
    higher: Mapping[tuple[str, str], bool | None]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    peak_memory: Mapping[str, int] = field(default_factory=dict[str, int])


def compare_harness(
    base: Side | None,
    adapter: Side,
    merged: Side,
    settings: HarnessSettings,
    *,
    pythons: Mapping[str, str],
    report: Report,
    note: Note = lambda text: None,
) -> tuple[HarnessResult, ...]:
    """`run_harness`'s figures alone."""
    return run_harness(
        base, adapter, merged, settings, pythons=pythons, report=report, note=note
    ).results


def run_harness(
    base: Side | None,
    adapter: Side,
    merged: Side,
    settings: HarnessSettings,
    *,
    pythons: Mapping[str, str],
    report: Report,
    note: Note = lambda text: None,
) -> Harness:
    """Evaluate the sides by lm-eval, one after the other, and pair what it measures.

    ``pythons`` are interpreters given for engines. Raises `UsageError` where lm-eval is not
    installed or has no such task, `Unsupported` for an artefact that it does not read and for
    tasks that run what a model writes, `BadInput` for a model or data that cannot be loaded.
    """
    if not settings.tasks:
        raise UsageError("No task of lm-eval was named.", hint="Name some: --lm-eval TASK,TASK.")
    python = python_of(LM_EVAL, pythons)
    sides = {"base": base, "adapter": adapter, "merged": merged}
    asked = {name: side for name, side in sides.items() if side is not None}
    for side in asked.values():
        _check(side)
    found: dict[str, dict[str, Any]] = {}
    for number, (name, side) in enumerate(asked.items()):

        def told(done: int, total: int, what: str, number: int = number, name: str = name) -> None:
            report(number * total + done, len(asked) * total, f"{name}: {what}")

        request = {**settings.as_request(), "side": side.as_request()}
        found[name] = call(python, _MODULE, request, told, note=note)
    notes = dict.fromkeys(text for one in found.values() for text in one["notes"])
    results, paired = _pair(found)
    higher = {
        (task, metric): better
        for task, metrics in cast("dict[str, Any]", found["merged"]["higher"]).items()
        for metric, better in metrics.items()
    }
    return Harness(
        results,
        paired,
        higher,
        tuple(notes),
        found["merged"]["versions"],
        {name: one["seconds"] for name, one in found.items()},
        {name: one["peak_memory"] for name, one in found.items()},
    )


def _check(side: Side) -> None:
    """Whether lm-eval can read it, before anything is loaded."""
    if side.server is not None:
        _ = side.server.api
        return
    if not (side.directory / "config.json").is_file():
        raise Unsupported(
            f"lm-eval is not given {side.directory}: it reads checkpoints and asks servers.",
            hint="Serve it, and name the server: --endpoint URL.",
        )
    if side.adapter is not None and not (side.adapter / "adapter_config.json").is_file():
        raise BadInput(f"{side.adapter} has no adapter_config.json, which PEFT would read.")


def _pair(
    found: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[HarnessResult, ...], dict[tuple[str, str], Paired]]:
    """Figures of all sides by task and metric, in the merged model's order."""
    scores = {name: one["scores"] for name, one in found.items()}
    ours, theirs = _keys(scores["merged"]), _keys(scores["adapter"])
    if lacking := sorted(set(ours) ^ set(theirs)):
        task, metric = lacking[0]
        has, lacks = ("merged", "adapter") if lacking[0] in ours else ("adapter", "merged")
        raise BadInput(
            f"lm-eval gives a figure of {metric} in {task} for the {has} side, and none for the "
            f"{lacks} side.",
            why="What that model computes may not be numbers.",
        )
    results: list[HarnessResult] = []
    paired: dict[tuple[str, str], Paired] = {}
    for task, metric in ours:
        value, error = scores["merged"][task][metric]
        reference, reference_error = scores["adapter"][task][metric]
        below, below_error = scores.get("base", {}).get(task, {}).get(metric, (None, None))
        results.append(
            HarnessResult(
                task=task,
                metric=metric,
                base=below,
                base_error=below_error,
                adapter=reference,
                adapter_error=reference_error,
                merged=value,
                merged_error=error,
            )
        )
        pair = _paired(
            *(found[n]["samples"].get(task, {}).get(metric) for n in ("adapter", "merged"))
        )
        if pair is not None:
            paired[task, metric] = pair
    return tuple(results), paired


def _keys(scores: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(task, metric) for task, metrics in scores.items() for metric in metrics]


def _paired(
    adapter: Mapping[str, float] | None, merged: Mapping[str, float] | None
) -> Paired | None:
    """Lost and won documents; None where they are not all judged right or wrong by both."""
    if not adapter or not merged or adapter.keys() != merged.keys():
        return None
    if not {*adapter.values(), *merged.values()} <= {0.0, 1.0}:
        return None
    lost = sum(adapter[one] > merged[one] for one in adapter)
    won = sum(adapter[one] < merged[one] for one in adapter)
    return Paired(len(adapter), lost, won)


def _vocabulary(directory: Path) -> int | None:
    """Rows of the embeddings, as a checkpoint's config says."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        found = config.get("text_config", config).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None
