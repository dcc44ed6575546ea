"""rank_pattern and alpha_pattern: which entry of a configuration speaks of a module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from remerge.sources.expressions import compiled

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Patterns(Generic[Value]):
    """A ``rank_pattern`` or ``alpha_pattern`` in the file's order."""

    field: str
    entries: Mapping[str, Value]

    def value(self, module: str, default: Value) -> Value:
        """The value of the first key that matches the module's path (PEFT utils/other.py,
        get_pattern_key); ``default`` when none does. Raises `BadInput` for a broken regex."""
        for pattern, value in self._compiled:
            if pattern.match(module):
                return value
        return default

    def check(self) -> None:
        """Raise `BadInput` for a key that is no usable regular expression."""
        _ = self._compiled

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], Value]]:
        return [(_compile(self.field, key), value) for key, value in self.entries.items()]


def is_whole(field: str, pattern: str, module: str) -> bool:
    """Whether a regular expression of the configuration matches all of a module's path. Raises
    `BadInput` for one that is not usable."""
    return _compile(field, pattern, rf"(?:{pattern})").fullmatch(module) is not None


def among(module: str, wanted: Sequence[str] | str, field: str) -> bool:
    """Whether a selection names a module: a regular expression for the whole path, or a list of
    paths and their ends (PEFT tuners_utils.py, check_target_module_exists)."""
    if isinstance(wanted, str):
        return is_whole(field, wanted, module)
    return module in wanted or module.endswith(tuple(f".{name}" for name in wanted))


def _compile(field: str, key: str, pattern: str | None = None) -> re.Pattern[str]:
    what = f"adapter_config.json: the {field} key {key[:60]!r}"
    hint = f"Write the {field} keys as module names."
    return compiled(key, pattern or rf"(.*\.)?({key})$", what, hint)
