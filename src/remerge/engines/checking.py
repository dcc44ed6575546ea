"""Whether an engine works: what it needs imports, and its probe does something small with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from remerge.engines.calling import call
from remerge.engines.engine import Engine
from remerge.errors import RemergeError


@dataclass(frozen=True)
class Finding:
    """``failure`` says what went wrong; without one, what the probe ``did`` and the versions."""

    failure: str | None = None
    did: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def check(engine: Engine, python: Path) -> Finding:
    """Have an interpreter import the engine and remerge, and do what the engine's probe does."""
    request = {"modules": engine.modules, "probe": engine.probe, "packages": engine.packages}
    try:
        found = call(python, "remerge.engines.probing", request, lambda done, total, name: None)
    except RemergeError as error:
        return Finding(failure=str(error))
    return Finding(did=found["did"], versions=found["versions"])
