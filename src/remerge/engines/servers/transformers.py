"""transformers as a server, for trying out: the handlers of `transformers serve`, with a model
under a name of its own and PEFT's adapters beside it, neither of which that program can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from remerge.engines.servers.server import Address, Command, Served, Server, Settings

_SERVER = Path(__file__).with_name("transformers_server.py")


def _command(python: Path, served: Served, settings: Settings, address: Address) -> Command:
    words = (str(python), "-P", str(_SERVER), str(served.model))
    variables = {"HF_HUB_OFFLINE": "1"}
    if settings.threads is not None:
        variables["OMP_NUM_THREADS"] = str(settings.threads)
    return Command((*words, *_flags(served, settings, address)), variables)


def _flags(served: Served, settings: Settings, address: Address) -> Iterator[str]:
    """Context, requests at once and the cache's memory are not among them: transformers answers one
    request after the other, and its cache grows with each."""
    yield from ("--served-model-name", served.name)
    yield from ("--host", address.host, "--port", str(address.port))
    yield from ("--dtype", settings.dtype)
    for adapter in served.adapters:
        yield from ("--adapter", adapter.name, str(adapter.path))


TRANSFORMERS_SERVER = Server("transformers", _command)
