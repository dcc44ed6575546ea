"""Numbers of a trainer's configuration, checked: they come from strangers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remerge.errors import BadInput

_MAX_RANK = 2**20


def positive_int(config: Mapping[str, Any], field: str, file: Path) -> int:
    """A field that is a whole number above zero; raises `BadInput` for anything else."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_RANK:
        raise _wrong(file, field, value, "a whole number above 0")
    return value


def finite(config: Mapping[str, Any], field: str, file: Path) -> float:
    """A field that is a finite number; raises `BadInput` for anything else."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(file, field, value, "a finite number")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number past every float
        return False


def _wrong(file: Path, field: str, value: object, wanted: str) -> BadInput:
    return BadInput(
        f"{file}: {field} is {str(value)[:80]!r}, where {wanted} is needed.",
        hint=f"Restore the {file.name} that the training run wrote.",
    )
