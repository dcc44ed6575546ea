"""The combine methods by name. A new one is one file of this package and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.merging.methods.linear import LINEAR
from remerge.merging.methods.method import Method
from remerge.merging.methods.sequential import SEQUENTIAL
from remerge.merging.methods.sum import SUM
from remerge.merging.methods.ties import TIES

METHODS: Mapping[str, Method[Any]] = {
    method.name: method
    for method in (
        SUM,
        LINEAR,
        SEQUENTIAL,
        TIES,
    )
}

# What other tools call them.
ALIASES: Mapping[str, str] = {"task_arithmetic": "sum"}
