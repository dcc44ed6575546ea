"""What is there: remerge and what it runs on, this machine, every engine. Imports none of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remerge.engines import machine
from remerge.engines.engine import Engine
from remerge.engines.environments import (
    place_of,
    python_of,
    size_of,
    state_of,
    versions_in,
)
from remerge.engines.registry import ENGINES
from remerge.sources.user_directories import cache_directory
from remerge.version import __version__

_PACKAGES = ("torch", "transformers", "peft")
# Instructions that decide which kernels of an engine run, and how fast.
_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def survey(pythons: Mapping[str, str]) -> dict[str, Any]:
    """One document: ``remerge``, ``machine`` and ``engines``, sizes in bytes.

    ``pythons`` are the user's own interpreters by engine. Raises `UsageError` for one that is no
    program.
    """
    return {
        "remerge": _remerge(),
        "machine": _machine(),
        "engines": [_engine(engine, pythons) for engine in ENGINES.values()],
    }


def _remerge() -> dict[str, Any]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {
        "version": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": found,
    }


def _machine() -> dict[str, Any]:
    able, gpus = machine.instructions(), machine.gpus()
    cache = cache_directory()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": machine.processor(),
        "cores": machine.cores(),
        "instructions": None if able is None else [name for name in _TOLD if name in able],
        "memory": machine.memory(),
        "gpus": [asdict(gpu) for gpu in gpus],
        # Loading torch takes a second or two: only where there is something to ask it.
        "torch_sees_gpus": _torch_sees() if gpus else 0,
        "cache": None if cache is None else str(cache),
        "cache_free": None if cache is None else _free(cache),
    }


def _engine(engine: Engine, pythons: Mapping[str, str]) -> dict[str, Any]:
    if engine.name in pythons:
        python = python_of(engine, pythons)
        state, place, versions, nbytes = "yours", str(python), _asked(python, engine), None
    else:
        state, place = state_of(engine), str(place_of(engine))
        missing = state == "not installed"
        versions = {} if missing else versions_in(engine)
        nbytes = engine.disk if missing else size_of(engine)
    able = machine.instructions()
    return {
        "name": engine.name,
        "state": state,
        "enables": engine.enables,
        "place": place,
        "bytes": nbytes,
        "versions": versions,
        "limits": [
            {
                "what": limit.what,
                "needs": limit.instructions,
                "here": None if able is None else limit.flag in able,
            }
            for limit in engine.limits
        ],
        "install": None
        if state in ("installed", "yours")
        else f"remerge engines install {engine.name}",
    }


def _asked(python: Path, engine: Engine) -> dict[str, str]:
    """Versions of an engine's packages in an interpreter of the user's; none where it fails."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _VERSIONS, *engine.packages],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _torch_sees() -> int:
    import torch

    return torch.cuda.device_count()


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
