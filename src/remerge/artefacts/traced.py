"""The answer of a trace: where a file came from, how that is known, and how far to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from remerge.artefacts.evaluations import Evaluation
from remerge.artefacts.manifest_facts import Told
from remerge.artefacts.self_description import Claims

Way = Literal["manifest", "store", "metadata", "configuration"]
Strength = Literal["proven", "partly proven", "claimed"]


@dataclass(frozen=True)
class Kept:
    """An artefact of a store: its id, kind and names, the SHA-256 of its files by name, its
    ``manifest`` if remerge made it, its provenance and test results as they stand on disk.
    ``title`` says what it is where it has no manifest."""

    artefact: str
    kind: str
    title: str
    names: tuple[str, ...]
    files: dict[str, str]
    manifest: bytes | None
    collected: bool = False
    provenance: bytes | None = None
    statements: tuple[bytes, ...] = ()


class Library(Protocol):
    """What a trace asks of a store."""

    def with_file(self, sha256: str) -> Sequence[Kept]:
        """Artefacts that have a file of this digest."""
        ...

    def with_merge_key(self, key: str) -> Sequence[Kept]:
        """Artefacts of this merge key."""
        ...

    def with_files(self, files: dict[str, str]) -> Sequence[Kept]:
        """Artefacts that manifests call by these files (name -> SHA-256) as their base."""
        ...


@dataclass(frozen=True)
class MadeBy:
    """When an artefact was made, and by what: from its provenance statement."""

    builder: str | None
    versions: dict[str, str]
    started: str | None
    finished: str | None


@dataclass(frozen=True)
class Origin:
    """One answer: what the manifest tells, the store's id and names of it, when it was made, what
    was measured of it. ``before`` is what its base was made from, and so on, where the base is an
    artefact itself. Of an adapter or a base that the store has without a manifest, ``told`` is
    None and ``title`` says which."""

    told: Told | None
    title: str
    kind: str
    artefact: str | None = None
    names: tuple[str, ...] = ()
    collected: bool = False
    made: MadeBy | None = None
    evaluations: tuple[Evaluation, ...] = ()
    before: tuple[Told, ...] = ()

    def document(self) -> dict[str, Any]:
        says = {} if self.told is None else self.told.document()
        return {
            "kind": self.kind,
            "title": self.title,
            "artefact": self.artefact,
            "names": list(self.names),
            "collected": self.collected,
            **says,
            "provenance": None if self.made is None else asdict(self.made),
            "evaluations": [one.document() for one in self.evaluations],
            "base_made_from": [told.document() for told in self.before],
        }


@dataclass(frozen=True)
class Trace:
    """What was found of ``asked``. ``origins`` are several where the same bytes belong to several
    artefacts; none where only ``claims`` are known. ``how`` says in sentences how it was
    identified, ``differs`` what is not as the manifest has it. ``parts`` are models that lie in the
    same directory and came from elsewhere."""

    asked: str
    kind: str
    known_by: Way
    strength: Strength
    how: tuple[str, ...]
    origins: tuple[Origin, ...] = ()
    claims: Claims | None = None
    differs: tuple[str, ...] = ()
    files: dict[str, str] | None = None
    parts: tuple[Trace, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing differs from what the manifests say."""
        return not self.differs and all(part.intact for part in self.parts)

    def document(self) -> dict[str, Any]:
        """The answer for `--json`."""
        return {
            "asked": self.asked,
            "kind": self.kind,
            "known_by": self.known_by,
            "strength": self.strength,
            "how": list(self.how),
            "differs": list(self.differs),
            "files": self.files or {},
            "origins": [origin.document() for origin in self.origins],
            "claims": None if self.claims is None else asdict(self.claims),
            "parts": [part.document() for part in self.parts],
        }
