"""The sizes of a server: what the command line said, in the words of sizing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from remerge.engines.machine import has_nvidia
from remerge.engines.servers.server import Served
from remerge.errors import UsageError
from remerge.serving.sizing.asked import Asked, Memory, Sized
from remerge.serving.sizing.reading import read_memory, size_of


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


def sizes_of(served: Served, engine: str, program: Path, wanted: Wanted) -> Sized:
    """Settings, why they are what they are, and the memory that they come to.

    Raises `UsageError` and `BadInput` for what does not fit.
    """
    asked = Asked(
        context=wanted.context,
        latency_budget=wanted.latency_budget,
        sequences=wanted.sequences,
        dtype=wanted.dtype,
        cache_dtype=wanted.cache_dtype,
    )
    memory = _memory(engine, program, wanted)
    if wanted.threads is not None:
        memory = replace(memory, threads=wanted.threads)
    return size_of(served.model, engine, asked, memory, adapters=served.adapters)


def _memory(engine: str, program: Path, wanted: Wanted) -> Memory:
    # The library in llama.cpp's environment is built for processors.
    gpu = has_nvidia() and (engine != "llama.cpp" or program.name.startswith("llama-server"))
    if gpu and wanted.memory is not None:
        raise UsageError(
            f"{engine} serves from the GPU here, and --memory says nothing of that.",
            hint="Use --gpu-memory.",
        )
    if not gpu and wanted.gpu_memory is not None:
        raise UsageError(f"{engine} serves without a GPU here.", hint="Use --memory.")
    return read_memory(wanted.gpu_memory if gpu else wanted.memory, gpu=gpu)
