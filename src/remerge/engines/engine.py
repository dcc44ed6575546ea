"""What is known of an engine: what it is for, and what its environment holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class FromSource:
    """Packages that lie in folders of a source distribution and nowhere else; its SHA-256."""

    requirement: str
    folders: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Engine:
    """One environment: ``requirements`` are pinned, ``modules`` must import for it to work.

    It lies over remerge's own environment (torch, transformers, remerge itself), whose packages it
    sees below its own. ``enables`` says what one can do with it.
    """

    name: str
    enables: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    sources: tuple[FromSource, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 of the definition: other versions make another engine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
