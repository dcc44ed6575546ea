"""What `remerge bench` measured, as far as advice rests on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from remerge.errors import BadInput
from remerge.sources.documents import read_json_object

FORMAT: Literal["remerge-bench/1"] = "remerge-bench/1"
_FILE = "bench.json"


class _Gain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    over: str
    measure: str
    concurrency: int | None
    value: float
    low: float | None
    high: float | None
    rounds: int


class _Machine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    processor: str
    gpus: tuple[str, ...]


class _Benchmark(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    engine: str
    machine: _Machine
    measure: str
    gains: tuple[_Gain, ...]


class Slower(BaseModel):
    """How many times as long a token takes unmerged: the interval of a measurement, and what that
    was of."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    source: str


def read_slower(path: Path) -> Slower:
    """The interval of ``bench.json``, or of the directory in which it lies.

    Raises `BadInput` for another file, and for one whose benchmark shows nothing: a request failed,
    or there were too few rounds.
    """
    file = path / _FILE if path.is_dir() else path
    document: dict[str, Any] = read_json_object(file)
    if document.get("format") != FORMAT:
        raise BadInput(
            f"{file} is no benchmark of remerge's.",
            hint="Write one: remerge bench BASE ADAPTER -o bench.json.",
        )
    try:
        found = _Benchmark.model_validate(document)
    except ValidationError as error:
        raise BadInput(f"{file} is damaged: {error.errors()[0]['msg']}.") from error
    gain = next(
        (
            gain
            for gain in found.gains
            if (gain.over, gain.measure, gain.concurrency) == ("adapter", found.measure, None)
        ),
        None,
    )
    if (
        gain is None
        or gain.low is None
        or gain.high is None
        or not (0 < gain.low <= gain.value <= gain.high < math.inf)
    ):
        raise BadInput(
            f"{file} tells nothing of the adapter's cost.",
            why="A request failed, the adapter was no arm of it, or there were too few rounds for "
            "an interval.",
            hint="Run remerge bench again, with --repeats 6 or more.",
        )
    of = "processor time" if found.measure == "cpu" else "time"
    where = found.machine.gpus[0] if found.machine.gpus else found.machine.processor
    unclear = ", which show no difference" if gain.low <= 1 <= gain.high else ""
    return Slower(
        low=gain.low,
        high=gain.high,
        source=f"measured by remerge bench in {found.engine} on {where}: {gain.value:.2f} times "
        f"the {of}, 95 % interval, {gain.rounds} rounds{unclear}",
    )
