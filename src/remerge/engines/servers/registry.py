"""All servers by their engine's name, and the interpreter that runs each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from remerge.engines.environments import is_installed, python_of
from remerge.engines.registry import engine_of
from remerge.engines.servers.llama_cpp import LLAMA_CPP_SERVER
from remerge.engines.servers.server import Server
from remerge.engines.servers.transformers import TRANSFORMERS_SERVER
from remerge.engines.servers.vllm import VLLM_SERVER
from remerge.errors import UsageError

SERVERS = {server.engine: server for server in (VLLM_SERVER, LLAMA_CPP_SERVER, TRANSFORMERS_SERVER)}


def server_of(engine: str) -> Server:
    """Raises `UsageError` for an engine that serves nothing."""
    if engine not in SERVERS:
        raise UsageError(
            f"{engine!r} is no engine that serves.", hint=f"Choose {', '.join(SERVERS)}."
        )
    return SERVERS[engine]


def usual_engine(given: Mapping[str, str], *, is_gguf: bool) -> str:
    """Who serves a GGUF file, or a checkpoint directory, where nobody says: llama.cpp, vLLM where
    it is installed or ``given`` (``--engine-python``), else transformers."""
    if is_gguf:
        return LLAMA_CPP_SERVER.engine
    vllm = VLLM_SERVER.engine
    there = vllm in given or is_installed(engine_of(vllm))
    return vllm if there else TRANSFORMERS_SERVER.engine


def program_of(server: Server, given: Mapping[str, str]) -> Path:
    """What runs a server: its engine's interpreter (``given`` is ``--engine-python``), for
    transformers remerge's own. Raises `UsageError` where there is none."""
    if server is TRANSFORMERS_SERVER:
        # The virtual environment is known by this path, and not by what it links to.
        return Path(given.get(server.engine, sys.executable)).absolute()
    engine = engine_of(server.engine)
    if server is LLAMA_CPP_SERVER and engine.name not in given and not is_installed(engine):
        own = shutil.which("llama-server")
        if own is not None:
            return Path(own)
    return python_of(engine, given)
