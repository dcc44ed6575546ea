"""What a benchmark ran on and with: the machine, and the versions of an engine's packages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from remerge.engines import machine
from remerge.engines.registry import engine_of
from remerge.serving.bench.measured import Machine

# Instructions that decide how fast a processor computes.
_TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_ASK = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def machine_now(load: float | None) -> Machine:
    """This machine; ``load`` is what it bore before."""
    known = machine.instructions() or frozenset[str]()
    return Machine(
        processor=machine.processor(),
        cores=machine.cores(),
        memory=machine.memory(),
        gpus=tuple(gpu.name for gpu in machine.gpus()),
        instructions=tuple(name for name in _TELLING if name in known),
        load=None if load is None else round(load, 2),
    )


def versions_of(engine: str, program: Path) -> dict[str, str]:
    """Of the packages that ran, as their own interpreter knows them."""
    names = (
        ("transformers", "peft", "torch")
        if engine == "transformers"
        else (*engine_of(engine).packages, "torch")
    )
    try:
        done = subprocess.run(
            [str(program), "-P", "-c", _ASK, *names],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        told = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {name: value for name, value in told.items() if isinstance(value, str)}
