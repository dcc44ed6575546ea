"""A promotion under way: what it asks, what a step finds, what its steps share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.rebuilding import Means
from remerge.artefacts.store.records import (
    Proof,
    Record,
    State,
    StoredFile,
    read_record,
    read_state,
)
from remerge.errors import RemergeError
from remerge.serving.laid_out import LaidOut

if TYPE_CHECKING:
    from remerge.validation.check import CheckReport
    from remerge.validation.compare import CompareReport
    from remerge.validation.findings import VerifyReport

    Findings = VerifyReport | CompareReport | CheckReport

Outcome = Literal["passed", "failed", "skipped", "reused"]
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Asking:
    """What a promotion is to show. ``gate`` is that of `remerge.compare`, ``form`` the format whose
    limits hold, ``engine`` who will serve it (None: by what it is); ``anew`` asks nothing of
    earlier comparisons; ``skip`` says why a step is left out, by its name."""

    gate: Mapping[str, Any] = field(default_factory=dict[str, Any])
    form: str | None = None
    engine: str | None = None
    anew: bool = False
    skip: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Found:
    """What a step found. ``shown`` goes into the log, ``documents`` are kept with their digests
    there; ``attached`` are files that now belong to the artefact, in the staging, and ``restored``
    those of it that had been collected; ``proof`` says that it was derived again."""

    summary: str
    state: Outcome = "passed"
    findings: Findings | None = None
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    documents: tuple[blobs.Staged, ...] = ()
    attached: tuple[tuple[StoredFile, blobs.Staged], ...] = ()
    proof: Proof | None = None
    restored: tuple[tuple[StoredFile, Path], ...] = ()
    refused: RemergeError | None = None


@dataclass
class Work:
    """A promotion under way: ``artefact`` is its id, ``name`` what the user calls it, ``place`` a
    directory of the store's staging, ``laid`` what the first step laid out there."""

    store: Store
    artefact: str
    name: str
    place: Path
    asking: Asking
    means: Means
    laid: LaidOut | None = None

    @property
    def record(self) -> Record:
        return read_record(self.store, self.artefact)

    @property
    def state(self) -> State:
        return read_state(self.store, self.artefact)

    @property
    def lying(self) -> LaidOut:
        assert self.laid is not None, "the first step lays it out"
        return self.laid


# What is told of a step before it is done, and what does it.
Plan = Callable[[Work], str]
Do = Callable[[Work, Report], Found]
