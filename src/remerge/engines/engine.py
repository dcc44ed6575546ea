"""What is known of an engine: what it is for, and what its environment holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_CONSTRAINTS = Path(__file__).parent / "constraints"


@dataclass(frozen=True)
class FromSource:
    """Packages that lie in folders of a source distribution and nowhere else; its SHA-256."""

    requirement: str
    folders: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class AlsoNamed:
    """A distribution that other programs ask for by another name than the one it is published
    under; ``version`` is what they must be told."""

    name: str
    version: str


@dataclass(frozen=True)
class Limit:
    """What an engine cannot do on a processor that lacks the instructions ``flag``, as Linux names
    them (`/proc/cpuinfo`)."""

    what: str
    flag: str
    instructions: str


@dataclass(frozen=True)
class Engine:
    """One environment: ``requirements`` are its main packages, ``modules`` must import for it to
    work, and ``probe`` is a module of remerge's that has it do something small.

    ``lies_over``: over remerge's own environment (torch, transformers, remerge itself), whose
    packages it sees below its own. Others have nothing of it and hold all that ``pins`` lists, so
    that their versions may be any; ``without`` names packages that these ask for and that would
    break it. ``enables`` says what one can do with it, ``variant`` which of several builds it is,
    and ``disk`` what it takes installed, in bytes, as measured.
    """

    name: str
    enables: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    sources: tuple[FromSource, ...] = ()
    lies_over: bool = True
    variant: str = ""
    without: tuple[str, ...] = ()
    probe: str | None = None
    also_named: tuple[AlsoNamed, ...] = ()
    limits: tuple[Limit, ...] = ()
    disk: int = 150_000_000

    @property
    def folder(self) -> str:
        """The name of its directory and of its constraint file."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def constraints(self) -> Path:
        """The file of its pins: every package with its version, as `pip freeze` writes it."""
        return _CONSTRAINTS / f"{self.folder}.txt"

    @property
    def packages(self) -> tuple[str, ...]:
        """The names of its main packages: those that it pins itself."""
        names = (requirement.split("==") for requirement in self.requirements)
        return tuple(name for name, *version in names if version)

    @property
    def identity(self) -> str:
        """SHA-256 of what lies in its environment: other versions make another engine."""
        holds = {
            "requirements": self.requirements,
            "sources": [asdict(source) for source in self.sources],
            "modules": self.modules,
            "without": self.without,
            "also_named": [asdict(other) for other in self.also_named],
            "lies_over": self.lies_over,
            "pins": self.pins,
        }
        return hashlib.sha256(json.dumps(holds, sort_keys=True).encode()).hexdigest()

    @property
    def pins(self) -> tuple[str, ...]:
        """The lines of its constraint file; none where it has no file."""
        try:
            text = self.constraints.read_text()
        except FileNotFoundError:
            return ()
        return tuple(line for line in text.splitlines() if line and not line.startswith("#"))
