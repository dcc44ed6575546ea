"""What was found of base and adapters, beside the facts that people state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from remerge.advice.facts import Facts

Named = str | Path


@dataclass(frozen=True)
class Copy:
    """One merged model that was planned: its bytes, and those that making it reads.
    ``base_bytes`` are those of a 16-bit base with as many weights."""

    nbytes: int
    read: int
    base_bytes: int


@dataclass(frozen=True)
class Looked:
    """``facts`` with what was found; the base, given or found, and its bytes on disk; bytes of each
    adapter on disk; a plan for each merge that the adapters given make."""

    facts: Facts
    base: Named | None = None
    base_bytes: int | None = None
    adapters_bytes: tuple[int, ...] = ()
    copies: tuple[Copy, ...] = ()
    notes: tuple[str, ...] = ()
