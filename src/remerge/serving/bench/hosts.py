"""Engines as the rounds know them: what each runs for merged and for the adapter, how it is
started, and how it is asked for either.

A server with the adapter answers for two arms: with the adapter, and (``idle``) without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.engines.servers import running as servers
from remerge.engines.servers.registry import program_of, server_of
from remerge.engines.servers.server import Adapter, Address, Command, Served, Settings
from remerge.serving.bench.batches import put_batches
from remerge.serving.bench.load import Answer, Asking, Tokens, put_load
from remerge.serving.bench.measured import ArmName
from remerge.serving.bench.processes import Tree
from remerge.serving.bench.rounds import Host, Running

# Names by which servers are asked.
_MERGED, _BASE, _ADAPTER = "merged", "base", "adapter"
_BATCHES = "remerge.engines.servers.batch_server"


@dataclass(frozen=True)
class Models:
    """What the engine reads: a merged model, the base, and the adapter for it with its rank. For
    llama.cpp all three are GGUF files, else directories."""

    merged: Path
    base: Path
    adapter: Path
    rank: int


@dataclass(frozen=True)
class Starting:
    """How servers are started: their sizes, where logs go, and how long to wait, in seconds, for a
    server to answer and for an answer."""

    settings: Settings
    logs: Path
    pythons: Mapping[str, str]
    device: str
    startup: float = 900.0
    answer: float = 3600.0


def hosts_of(
    engine: str, models: Models, starting: Starting, arms: Sequence[ArmName]
) -> list[Host]:
    """One host for merged, and one for the arms that the adapter's engine answers for."""
    merged = Served(models.merged, _MERGED)
    adapted = Served(models.base, _BASE, (Adapter(_ADAPTER, models.adapter, models.rank),))
    unmerged: tuple[ArmName, ...] = tuple(arm for arm in arms if arm != "merged")
    return [
        Host(("merged",), _start(engine, merged, starting)),
        Host(unmerged, _start(engine, adapted, starting)),
    ]


def _start(
    engine: str, served: Served, starting: Starting
) -> Callable[[], AbstractContextManager[Running]]:
    @contextmanager
    def start() -> Generator[Running]:
        address = Address(port=servers.free_port())
        log = starting.logs / f"{served.name}.log"
        command, health = _command(engine, served, starting, address)
        server = servers.start(command, address, log=log)
        try:
            seconds = servers.wait_healthy(server, address, timeout=starting.startup, health=health)
            tree = Tree(lambda: server.processes)
            ask = _asker(engine, address, bool(served.adapters), starting.answer)
            yield _Hosted(tree, seconds, ask)
        finally:
            server.stop()

    return start


Ask = Callable[[ArmName, Sequence[Tokens], int, int], tuple[list[Answer], float]]


@dataclass(frozen=True)
class _Hosted:
    tree: Tree
    start_seconds: float
    ask: Ask

    def load(
        self, arm: ArmName, prompts: Sequence[Tokens], *, concurrency: int, max_tokens: int
    ) -> tuple[list[Answer], float]:
        return self.ask(arm, prompts, concurrency, max_tokens)


def _command(
    engine: str, served: Served, starting: Starting, address: Address
) -> tuple[Command, str]:
    if engine == "transformers":
        return _batches(served, starting, address), "/health"
    server = server_of(engine)
    python = program_of(server, starting.pythons)
    command = server.command(python, served, starting.settings, address)
    return command, server.health


def _batches(served: Served, starting: Starting, address: Address) -> Command:
    settings = starting.settings
    words = [starting.pythons.get("transformers", sys.executable), "-P", "-m", _BATCHES]
    words += [str(served.model), "--port", str(address.port), "--dtype", settings.dtype]
    words += ["--device", starting.device]
    variables = {"HF_HUB_OFFLINE": "1"}
    if settings.threads is not None:
        words += ["--threads", str(settings.threads)]
        variables["OMP_NUM_THREADS"] = str(settings.threads)
    for adapter in served.adapters:
        words += ["--adapter", str(adapter.path)]
    return Command(tuple(words), variables)


def _asker(engine: str, address: Address, adapted: bool, timeout: float) -> Ask:
    def ask(
        arm: ArmName, prompts: Sequence[Tokens], concurrency: int, max_tokens: int
    ) -> tuple[list[Answer], float]:
        if engine == "transformers":
            return put_batches(
                address.url,
                prompts,
                concurrency=concurrency,
                max_tokens=max_tokens,
                adapted=arm == "adapter",
                timeout=timeout,
            )
        asking = Asking(address.url, _model(arm), _extra(engine, arm, adapted=adapted), timeout)
        return put_load(asking, prompts, concurrency=concurrency, max_tokens=max_tokens)

    return ask


def _model(arm: ArmName) -> str:
    return {"merged": _MERGED, "adapter": _ADAPTER, "idle": _BASE}[arm]


def _extra(engine: str, arm: ArmName, *, adapted: bool) -> dict[str, Any]:
    """What an engine must be told so that every prompt is computed whole, and by the right arm."""
    if engine == "vllm":
        # Another salt for each request: nothing of an earlier one is found again.
        return {"cache_salt": ""}
    extra: dict[str, Any] = {"cache_prompt": False}
    if adapted:
        # It knows no adapter by name; each request says how much of it there is.
        extra["lora"] = [{"id": 0, "scale": 1.0 if arm == "adapter" else 0.0}]
    return extra
