"""Where the engines of tests are installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
# As `XDG_CACHE_HOME=.engines remerge engines install NAME` puts them.
ENGINES = Path(os.environ.get("REMERGE_TEST_ENGINES", _ROOT / ".engines/remerge/engines"))


def python_of(name: str) -> Path:
    return ENGINES / name / "bin" / "python"


def needs(*names: str) -> list[pytest.MarkDecorator]:
    """What a module of tests is marked with whose engines may be missing."""
    missing = [name for name in names if not python_of(name).exists()]
    return [
        pytest.mark.engine,
        pytest.mark.timeout(1200),
        pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    ]
