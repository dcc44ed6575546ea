"""What a benchmark found, as its JSON has it: figures, and the samples that they come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from remerge.advice.measured import FORMAT

ArmName = Literal["merged", "adapter", "idle"]
# Tokens for a second of the processors' time, or of the clock on the wall.
Measure = Literal["cpu", "wall"]


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Told):
    """Where it ran; ``memory`` is in bytes, ``instructions`` those of the processor that decide how
    fast it computes, ``load`` how many programs wanted it before the benchmark began."""

    processor: str
    cores: int
    memory: int
    gpus: tuple[str, ...]
    instructions: tuple[str, ...]
    load: float | None


class Settings(_Told):
    """What was asked for. ``servers`` says how they were run: ``anew`` (both started for each
    round), ``kept`` (both up all the while), ``in turn`` (one at a time, started for each round) or
    ``processes`` (no servers)."""

    concurrency: tuple[int, ...]
    requests: tuple[int, ...]
    max_tokens: int
    prompts: int
    prompt_tokens: tuple[int, int]
    prompts_from: str
    rounds: int
    threads: int
    dtype: str
    context: int
    servers: Literal["anew", "kept", "in turn"]
    seed: int


class Arm(_Told):
    """``what`` runs in it. ``memory`` (bytes) is the most that its processes took, of machine and
    GPU; ``start_seconds`` the median from its command until it answered."""

    name: ArmName
    what: str
    memory: int | None
    gpu_memory: int | None
    start_seconds: float


class Spread(_Told):
    """The median of rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float


class Latency(_Told):
    """Seconds, over the requests of all rounds; ``rounds`` is the spread of each round's median."""

    p50: float
    p95: float
    p99: float
    rounds: Spread


class Point(_Told):
    """An arm at one concurrency. ``failed`` requests make all figures None."""

    arm: ArmName
    concurrency: int
    failed: int
    tokens_per_second: Spread | None
    tokens_per_cpu_second: Spread | None
    first_token: Latency | None
    between_tokens: Latency | None


class Gain(_Told):
    """How many times the tokens of the arm ``over`` merged generates for a second of ``measure``,
    over all concurrencies (None) or one. ``low`` and ``high`` bound it with 95 % confidence."""

    over: ArmName
    measure: Measure
    concurrency: int | None
    value: float
    low: float | None
    high: float | None
    rounds: int
    says: str


class Sample(_Told):
    """One arm in one round at one concurrency: when in the round it had its turn, seconds, and what
    it generated meanwhile."""

    round: int
    concurrency: int
    arm: ArmName
    turn: int
    seconds: float
    cpu_seconds: float | None
    tokens: int
    failed: int


class Benchmark(_Told):
    """A whole run. ``model`` has the shape of the model and what is known of where it came from, by
    digests; ``headline`` is what the gain over the adapter says."""

    format: Literal["remerge-bench/1"] = FORMAT
    remerge: str
    engine: str
    versions: dict[str, str]
    machine: Machine
    settings: Settings
    model: dict[str, Any]
    arms: tuple[Arm, ...]
    measure: Measure
    headline: str
    points: tuple[Point, ...]
    gains: tuple[Gain, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether no request failed."""
        return not any(point.failed for point in self.points)

    def gain(self, over: ArmName, measure: Measure, concurrency: int | None = None) -> Gain | None:
        """A gain; None where a request failed, or the system does not tell processor time."""
        wanted = (over, measure, concurrency)
        found = (g for g in self.gains if (g.over, g.measure, g.concurrency) == wanted)
        return next(found, None)
