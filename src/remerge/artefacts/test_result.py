"""The result of a comparison, beside the artefact that it judges: an in-toto statement, one file a
run. The manifest of the merge never changes; what was measured later has a date of its own.

The predicate is in-toto's test result v0.1 (spec/predicates/test-result.md of in-toto/attestation),
with the figures under ``figures``, a field that other readers pass over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.provenance import STATEMENT, to_text
from remerge.artefacts.records import FileRecord, parsed
from remerge.outputs.directory import write_durably
from remerge.sources.storage import sync_directory

PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
TESTS = "remerge.tests"


class _Facts(BaseModel):
    # JSON has no numbers that are not finite, and a broken model's divergence is none.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Interval(_Facts):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class TaskResult(_Facts):
    """One set of questions. ``delta`` is merged less adapter, over the same questions drawn anew;
    ``lost`` and ``won`` count questions on which the merged model scores lower, or higher, and
    ``p_value`` is McNemar's exact test of them (two-sided; of scores between right and wrong the
    sign test, which is the same sum)."""

    name: str
    scorer: str
    questions: int
    base: Interval | None
    adapter: Interval
    merged: Interval
    delta: Interval
    lost: int
    won: int
    p_value: float


class HarnessResult(_Facts):
    """One metric of one task of lm-eval, with its standard errors where it tells them."""

    task: str
    metric: str
    base: float | None
    base_error: float | None
    adapter: float
    adapter_error: float | None
    merged: float
    merged_error: float | None


class LogitsResult(_Facts):
    """What lies between adapter on base and merged over all positions of some texts.

    ``kl_mean`` is the mean of KL(adapter || merged) in nats; ``noise_kl`` that of random errors of
    the format's size in the weights; ``difference_mean`` and ``difference_max`` are absolute, of
    ``differing`` (logits, or log-probabilities where an engine tells only these). ``likeliest`` is
    how many tokens of a position the engine told, None for all: KL then is a lower bound.
    """

    name: str
    prompts: int
    positions: int
    vocabulary: int
    likeliest: int | None
    differing: Literal["logits", "log-probabilities"]
    difference_mean: float
    difference_max: float
    kl_mean: float
    kl_max: float
    noise_kl: float | None
    top1: float
    top5: float
    perplexity_base: float | None
    perplexity_adapter: float
    perplexity_merged: float


class TensorResult(_Facts):
    """One stored tensor against the exact merge in float64.

    ``base_norm`` and ``delta_norm`` are Frobenius norms. ``kept`` is the part of the delta that is
    there, ``<W'-W, D> / <D, D>``, ``noise`` what was added to it, ``|W'-W-D| / |D|``; both None
    without a delta. ``worst`` and ``mean`` errors are in units in the last place of the stored
    dtype; ``excess`` is the error's norm over that of one rounding, 1 for a right merge.
    """

    elements: int
    touched: bool
    base_norm: float | None
    delta_norm: float | None
    kept: float | None
    noise: float | None
    worst: float | None
    mean: float | None
    excess: float | None


class WeightsResult(_Facts):
    """All stored tensors together, and each by name. ``measured`` of how many ``tensors``."""

    dtype: str
    measured: int
    tensors: dict[str, TensorResult]
    worst: float
    worst_tensor: str
    mean: float
    kept: float | None
    noise: float | None
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class GateResult(_Facts):
    """One thing that had to hold: what was measured, and the limit in words."""

    name: str
    measured: str
    limit: str
    passed: bool


class Differing(_Facts):
    """A question that the models answer differently."""

    task: str
    prompt: str
    expected: str
    base: str | None
    adapter: str
    merged: str
    adapter_right: bool
    merged_right: bool


class Suspect(_Facts):
    """A part of the model that a bisection put right alone: ``kl`` is what then was left of the
    divergence, ``share`` the part of it that went."""

    name: str
    tensors: tuple[str, ...]
    kl: float
    share: float


class Bisection(_Facts):
    """Where the divergence comes from, and what would pass: ``proposal`` in words, ``command`` to
    run, and whether the changed artefact was made, compared and ``proven`` to pass."""

    kl: float
    suspects: tuple[Suspect, ...]
    proposal: str | None
    command: str | None
    proven: bool


class Cost(_Facts):
    """What a side took: seconds, and the largest resident memory in bytes; ``cached`` answers were
    known before."""

    side: str
    engine: str
    seconds: float
    peak_memory: int
    asked: int
    cached: int


class Figures(_Facts):
    """All that a comparison measured."""

    started: str
    seconds: float
    verdict: Literal["passed", "failed"]
    reference: str
    engine: str
    format: str | None
    device: str
    dtype: str
    nbytes: int
    command: str
    gates: tuple[GateResult, ...]
    weights: WeightsResult | None = None
    logits: tuple[LogitsResult, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    harness: tuple[HarnessResult, ...] = ()
    differing: tuple[Differing, ...] = ()
    bisection: Bisection | None = None
    costs: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = {}


class _Digest(_Facts):
    sha256: str


class _Subject(_Facts):
    name: str
    digest: _Digest


class _Predicate(_Facts):
    result: Literal["PASSED", "FAILED"]
    configuration: tuple[_Subject, ...]
    passedTests: tuple[str, ...]
    failedTests: tuple[str, ...]
    figures: Figures


class Statement(BaseModel):
    """A test result as it lies on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    type: Literal["https://in-toto.io/Statement/v1"]
    subject: tuple[_Subject, ...]
    predicateType: Literal["https://in-toto.io/attestation/test-result/v0.1"]
    predicate: _Predicate


def tests_of(output: Path) -> Path:
    """The directory of an output's test results, be it a directory or one file."""
    return output / TESTS if output.is_dir() else output.with_name(f"{output.name}.{TESTS}")


def statement(
    figures: Figures, files: Sequence[FileRecord], configuration: Sequence[FileRecord]
) -> dict[str, Any]:
    """The statement about ``files``, which were judged by what ``configuration`` holds (prompts and
    questions)."""

    def described(records: Sequence[FileRecord]) -> list[dict[str, Any]]:
        return [{"name": r.name, "digest": {"sha256": r.sha256}} for r in records]

    return {
        "_type": STATEMENT,
        "subject": described(files),
        "predicateType": PREDICATE,
        "predicate": {
            "result": figures.verdict.upper(),
            "configuration": described(configuration),
            "passedTests": [gate.name for gate in figures.gates if gate.passed],
            "failedTests": [gate.name for gate in figures.gates if not gate.passed],
            "figures": json.loads(figures.model_dump_json()),
        },
    }


def write_test_result(output: Path, document: dict[str, Any]) -> Path:
    """Write a statement beside the artefact, named by when it started; the file's path."""
    place = tests_of(output)
    place.mkdir(exist_ok=True)
    started = document["predicate"]["figures"]["started"]
    stamp = "".join(c for c in started.partition("+")[0] if c.isalnum())
    path, number = place / f"{stamp}Z.json", 1
    while path.exists():
        number += 1
        path = place / f"{stamp}Z-{number}.json"
    temporary = path.with_suffix(".part")
    write_durably(temporary, to_text(document))
    temporary.rename(path)
    sync_directory(place)
    return path


def read_test_results(output: Path) -> list[Figures]:
    """All results of an output, oldest first; raises `BadInput` for a file that is none."""
    return [one.predicate.figures for one in read_statements(output)]


def read_statements(output: Path) -> list[Statement]:
    """The same with the digests of what was judged, and by what."""
    found = [read_statement(path) for path in sorted(tests_of(output).glob("*.json"))]
    return sorted(found, key=lambda one: one.predicate.figures.started)


def read_statement(path: Path) -> Statement:
    """One result by its file."""
    return parsed(path, path.read_bytes().replace(b'"_type"', b'"type"', 1), Statement)
