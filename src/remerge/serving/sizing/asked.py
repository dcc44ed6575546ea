"""What sizes are asked for, what memory there is, and the sizes that come of both."""

from __future__ import annotations

from dataclasses import dataclass

from remerge.engines.servers.server import Settings


@dataclass(frozen=True)
class Asked:
    """``context`` tokens of one request, ``latency_budget`` milliseconds until the first token of
    its answer, ``sequences`` at once, ``dtype`` and ``cache_dtype`` by the engine's names; None:
    not asked for. ``prompt`` is the tokens of the prompt that the budget is meant for."""

    context: int | None = None
    latency_budget: float | None = None
    sequences: int | None = None
    dtype: str = "auto"
    cache_dtype: str = "auto"
    prompt: int | None = None


@dataclass(frozen=True)
class Memory:
    """``given`` bytes are what the engine may take in all: of the machine, or of the GPU's
    ``gpu_total`` where there is one. ``source`` says where the number comes from."""

    given: int
    source: str
    gpu_name: str | None = None
    gpu_total: int | None = None
    threads: int = 1


@dataclass(frozen=True)
class Parts:
    """Bytes of memory. ``loading`` is what is needed for a while as weights are read, beyond what
    is needed later; it is in ``total`` only where it is the larger."""

    weights: int
    cache: int
    compute: int
    engine: int
    adapters: int
    loading: int
    given: int

    @property
    def total(self) -> int:
        serving = self.weights + self.cache + self.compute + self.engine + self.adapters
        return max(serving, self.weights + self.adapters + self.engine + self.loading)


@dataclass(frozen=True)
class Forecast:
    """Seconds, not measured but reckoned: until the first token of a prompt of ``prompt`` tokens,
    and of one more token, with every sequence at work. ``rests_on`` says by which rates."""

    prompt: int
    first_token: float
    next_token: float
    rests_on: str


@dataclass(frozen=True)
class Sized:
    """Settings of a server, why they are what they are, and the memory that they come to."""

    settings: Settings
    reasons: tuple[str, ...]
    parts: Parts
    forecast: Forecast
