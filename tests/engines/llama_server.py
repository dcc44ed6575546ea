"""llama.cpp's own server, in its environment, with a checkpoint in float32."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import remerge
from remerge.engines.endpoint import Endpoint
from tests.engines.places import python_of

_SERVER = """
import sys, time, xllamacpp
asked = xllamacpp.CommonParams()
asked.model.path = sys.argv[1]
asked.n_ctx, asked.n_parallel, asked.warmup = 4 * 512, 4, False
asked.cache_type_k = asked.cache_type_v = 0
asked.hostnames, asked.port = ["127.0.0.1"], 0
server = xllamacpp.Server(asked)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


@contextmanager
def llama_server(checkpoint: Path) -> Generator[Endpoint]:
    """A server of the checkpoint, which is written as a GGUF file beside it."""
    file = checkpoint.with_name(f"{checkpoint.name}.gguf")
    python = str(python_of("llama.cpp"))
    remerge.export(checkpoint, file, to="gguf:F32", engine_python={"llama.cpp": python})
    command = [python, "-c", _SERVER, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Endpoint(process.stdout.readline().strip(), key=None, concurrency=4)
        finally:
            process.kill()
