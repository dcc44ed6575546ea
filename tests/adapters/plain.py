"""The least that names are asked with; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Factors:
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None


@dataclass(frozen=True)
class Speaks:
    """What an adapter speaks of."""

    modules: Mapping[str, tuple[Factors, ...]]
    parameters: Mapping[str, tuple[int, ...]]
    order: bool = False
