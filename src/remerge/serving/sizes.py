"""The sizes of a server for what is served, from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from remerge.engines.servers.server import Served, Settings


@dataclass(frozen=True)
class Wanted:
    """What the command line said; None where it said nothing. ``memory`` and ``gpu_memory`` in
    bytes, ``latency_budget`` in milliseconds until the first token."""

    context: int | None = None
    latency_budget: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None
    sequences: int | None = None
    dtype: str = "auto"
    cache_dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Sizes:
    settings: Settings
    reasons: tuple[str, ...]


def sizes_of(served: Served, engine: str, wanted: Wanted) -> Sizes:
    """Settings, and why they are what they are."""
    settings = Settings(
        context=wanted.context or 512,
        sequences=wanted.sequences or 4,
        cache_bytes=2**28,
        dtype=wanted.dtype,
        cache_dtype=wanted.cache_dtype,
        threads=wanted.threads,
    )
    return Sizes(settings, ())
