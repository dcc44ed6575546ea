"""vLLM's server: `vllm serve`, as its documentation has it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from remerge.engines.servers.server import Adapter, Address, Command, Served, Server, Settings
from remerge.errors import UsageError

# What --max-lora-rank takes: vllm.config.lora, MaxLoRARanks.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def rank_slot(rank: int) -> int:
    """The smallest ``--max-lora-rank`` that holds a rank; raises `UsageError` above the largest."""
    for slot in RANKS:
        if rank <= slot:
            return slot
    raise UsageError(
        f"vLLM serves no adapter of rank {rank}: {RANKS[-1]} is the most that it takes.",
        hint="Merge it: remerge merge BASE ADAPTER -o OUT.",
    )


def _command(python: Path, served: Served, settings: Settings, address: Address) -> Command:
    words = [*_program(python), "serve", str(served.model), *_flags(served, settings, address)]
    # Nothing is fetched: what is served lies here. Nothing is told of it elsewhere either.
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if settings.threads is not None and settings.gpu_fraction is None:
        variables["OMP_NUM_THREADS"] = str(settings.threads)
        # Otherwise the build for processors binds threads to cores and keeps one for itself.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return Command(tuple(words), variables)


def _program(python: Path) -> list[str]:
    """The interpreter's own `vllm`, which reads as people know it; else the module behind it."""
    script = python.parent / "vllm"
    if os.access(script, os.X_OK):
        return [str(script)]
    return [str(python), "-P", "-m", "vllm.entrypoints.cli.main"]


def _flags(served: Served, settings: Settings, address: Address) -> Iterator[str]:
    yield from ("--served-model-name", served.name)
    yield from ("--host", address.host, "--port", str(address.port))
    yield from ("--max-model-len", str(settings.context))
    yield from ("--max-num-seqs", str(settings.sequences))
    if settings.batch is not None:
        yield from ("--max-num-batched-tokens", str(settings.batch))
    yield from ("--dtype", settings.dtype)
    yield from ("--kv-cache-dtype", settings.cache_dtype)
    if settings.gpu_fraction is None:
        # VLLM_CPU_KVCACHE_SPACE says the same in whole GiB only.
        yield from ("--kv-cache-memory-bytes", str(settings.cache_bytes))
    else:
        # vLLM measures what the model takes and gives the rest of the share to keys and values.
        yield from ("--gpu-memory-utilization", f"{settings.gpu_fraction:.4g}")
    if served.adapters:
        yield "--enable-lora"
        yield from ("--max-lora-rank", str(max(rank_slot(a.rank) for a in served.adapters)))
        yield from ("--max-loras", str(len(served.adapters)))
        # Last: it takes all words up to the next option.
        yield from ("--lora-modules", *map(_named, served.adapters))


def _named(adapter: Adapter) -> str:
    """NAME=PATH, or JSON where vLLM would read that otherwise."""
    if "=" in adapter.name or "," in f"{adapter.name}{adapter.path}":
        return json.dumps({"name": adapter.name, "path": str(adapter.path)})
    return f"{adapter.name}={adapter.path}"


VLLM_SERVER = Server("vllm", _command, key_variable="VLLM_API_KEY")
