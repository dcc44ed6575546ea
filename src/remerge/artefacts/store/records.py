"""What a store remembers of an artefact: what it is, which never changes, and what became of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remerge.artefacts.store.layout import Store
from remerge.errors import BadInput, IntegrityError

Kind = Literal["adapter", "base", "merged", "exported"]
# Made from base and adapter, and so to be made again. The others are what nothing brings back.
DERIVED: frozenset[Kind] = frozenset({"merged", "exported"})
_DIGEST = r"^[0-9a-f]{64}$"

M = TypeVar("M", bound=BaseModel)


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Facts):
    """A file by its name in the artefact, size in bytes and SHA-256; ``derived`` where base and
    adapter bring it back."""

    name: str
    size: int
    sha256: str = Field(pattern=_DIGEST)
    derived: bool = False


class Source(_Facts):
    """A base or an adapter of a derived artefact: ``digest`` is that of its names and digests."""

    name: str
    version: str
    digest: str = Field(pattern=_DIGEST)


class Record(_Facts):
    """What an artefact is. ``manifest`` is its ``remerge.json`` among the ``files``; ``single`` is
    the name of an artefact that is one file with its manifest beside it; ``digest`` is what
    manifests call it by whose base or adapter it is."""

    format: Literal["remerge-artefact/1"] = "remerge-artefact/1"
    kind: Kind
    digest: str | None = Field(default=None, pattern=_DIGEST)
    form: str | None = None
    single: str | None = None
    manifest: str | None = None
    merge_key: str | None = None
    base: Source | None = None
    adapters: tuple[Source, ...] = ()
    files: tuple[StoredFile, ...]

    @property
    def derived(self) -> bool:
        return self.kind in DERIVED

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def content(self) -> bytes:
        """The record as it lies on disk; its SHA-256 is the artefact's id."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()

    @property
    def id(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()


class Proof(_Facts):
    """That deriving the artefact again gave the same bytes: when, how long it took, on what."""

    time: str
    seconds: float
    versions: Mapping[str, str] = {}


class Collected(_Facts):
    """That the derived files were deleted; ``rebuildable`` unless that was forced."""

    time: str
    nbytes: int
    rebuildable: bool


class State(_Facts):
    """What became of an artefact. ``title`` is what it is called without a name; ``attached`` files
    came with it and may change: provenance, model card, test results."""

    title: str
    added: str
    pinned: bool = False
    proof: Proof | None = None
    collected: Collected | None = None
    attached: tuple[StoredFile, ...] = ()

    def content(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


def read_record(store: Store, artefact: str) -> Record:
    """The record of an artefact by its id; raises `IntegrityError` for one that was changed."""
    path = store.record(artefact)
    content = _content(store, path)
    if hashlib.sha256(content).hexdigest() != artefact:
        raise IntegrityError(f"{path} is not the record that its name says: it was changed.")
    return _parsed(content, Record, str(path))


def is_whole(store: Store, artefact: str) -> bool:
    """Whether the record is there and what its name says."""
    path = store.record(artefact)
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == artefact


def read_state(store: Store, artefact: str) -> State:
    """What became of an artefact."""
    path = store.state(artefact)
    return _parsed(_content(store, path), State, str(path))


def all_records(store: Store) -> list[str]:
    """The ids of all artefacts."""
    return sorted(path.stem for path in (store.root / "records").glob("??/*.json"))


def _content(store: Store, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing in the store {store}.") from error


def _parsed(content: bytes, kind: type[M], path: str) -> M:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged ({error.errors()[0]['msg']}).") from error
