"""Run in an engine's environment: import what it needs, and have its probe try it."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from remerge.engines.calling import Report, answer


def work(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """What the probe did and the versions of the engine's packages; raises whatever they raise."""
    # The probe first: it sets what its engine wants set before it is imported.
    probe = importlib.import_module(request["probe"]) if request["probe"] else None
    # All that remerge itself needs to open a merge.
    for module in (*request["modules"], "remerge.api"):
        importlib.import_module(module)
    versions: dict[str, str] = {}
    for name in request["packages"]:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"did": probe.probe() if probe else "imported it", "versions": versions}


if __name__ == "__main__":
    answer(work)
