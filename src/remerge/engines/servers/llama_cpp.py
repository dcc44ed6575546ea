"""llama.cpp's server: the one in its engine's environment, or a `llama-server` of the user's own.
Both are given the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from remerge.engines.servers.server import Address, Command, Served, Server, Settings
from remerge.errors import UsageError

_SERVER = Path(__file__).with_name("llama_server.py")


def _command(python: Path, served: Served, settings: Settings, address: Address) -> Command:
    return Command((*_program(python), *_flags(served, settings, address)))


def _program(python: Path) -> tuple[str, ...]:
    """``python`` may be llama-server itself, by its name."""
    if python.name.startswith("llama-server"):
        return (str(python),)
    # A file and no module: the environment need not have remerge.
    return (str(python), "-P", str(_SERVER))


def _flags(served: Served, settings: Settings, address: Address) -> Iterator[str]:
    if len(served.adapters) > 1:
        raise UsageError(
            "llama.cpp's server adds all adapters that it is given, and has no names for them.",
            hint="Serve one of them, or use vLLM (--engine vllm), or merge each.",
        )
    # One adapter is in every answer: the base's name would promise something else.
    name = served.adapters[0].name if served.adapters else served.name
    yield from ("-m", str(served.model), "--alias", name)
    yield from ("--host", address.host, "--port", str(address.port))
    # -c is divided among the requests at once.
    yield from ("-c", str(settings.context * settings.sequences), "-np", str(settings.sequences))
    if settings.batch is not None:
        yield from ("-ub", str(settings.batch))
    if settings.cache_dtype != "auto":
        yield from ("--cache-type-k", settings.cache_dtype, "--cache-type-v", settings.cache_dtype)
    # Keys and values of past requests, up to 8 GiB of memory by default, and copies of windows and
    # states to go back to: no sizing counts them.
    yield from ("--cache-ram", "0", "--ctx-checkpoints", "0")
    # Sizes are found; by default it changes them to what it thinks fits.
    yield from ("--fit", "off")
    if settings.threads is not None:
        yield from ("-t", str(settings.threads))
    for adapter in served.adapters:
        yield from ("--lora", str(adapter.path))


LLAMA_CPP_SERVER = Server("llama.cpp", _command, key_variable="LLAMA_API_KEY")
