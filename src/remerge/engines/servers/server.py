"""What is served, how large, and what an engine's file must say to be started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """An adapter served unmerged beside the base: a PEFT directory, for llama.cpp a GGUF file."""

    name: str
    path: Path
    rank: int


@dataclass(frozen=True)
class Served:
    """``model`` is a checkpoint directory or a GGUF file; clients ask for it as ``name``, and for
    an adapter by that adapter's own."""

    model: Path
    name: str
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Sizes of a server, in the same words for every engine.

    ``context`` is the tokens of one request, prompt and answer together (vLLM's ``max_model_len``),
    ``sequences`` the requests computed at once (``max_num_seqs``), ``cache_bytes`` the memory of
    keys and values of all of them. ``dtype`` is that of the weights as computed with,
    ``cache_dtype`` that of keys and values, both as the engine names them (``auto`` where the
    engine chooses). ``gpu_fraction`` is the share of a GPU's memory that the engine may take in
    all, None on processors. ``batch`` is the tokens of prompts that one step computes (vLLM's
    ``max_num_batched_tokens``, llama.cpp's ``n_ubatch``), None where the engine has no such size.
    """

    context: int
    sequences: int
    cache_bytes: int
    dtype: str = "auto"
    cache_dtype: str = "auto"
    threads: int | None = None
    gpu_fraction: float | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Address:
    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def url(self) -> str:
        """Where a client on this machine finds it; every interface is also the local one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        # In an address the colons of IPv6 would end at a port.
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and variables that it needs beside those there are."""

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Server:
    """An engine as a server of OpenAI's API.

    ``command`` gives what starts it, from its interpreter; ``health`` is the path that answers 200
    once it can be asked; in ``key_variable`` it finds the key that clients must send, None where it
    knows none.
    """

    engine: str
    command: Callable[[Path, Served, Settings, Address], Command]
    health: str = "/health"
    key_variable: str | None = None
