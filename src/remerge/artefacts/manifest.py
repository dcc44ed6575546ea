"""The manifest of a merge: what was made, from what, by what, with which digests.

``remerge.json`` is the mark of completion and is the same for the same merge; times and resources
go to ``provenance.json``. Neither holds an absolute path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from remerge.artefacts.conflict_report import ConflictReport
from remerge.errors import BadInput
from remerge.merging.recipe import Recipe

M = TypeVar("M", bound=BaseModel)

MANIFEST = "remerge.json"
PROVENANCE = "provenance.json"
PREPARATIONS = "remerge.preparations"
# Changes as scores come, and so is none of the outputs.
CARD = "README.md"


class FileRecord(BaseModel):
    """A file by name, size in bytes and SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    sha256: str


class InputRecord(BaseModel):
    """A base or an adapter: its name, the Hub's id and commit if it came from there, its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub_id: str | None = None
    commit: str | None = None
    subfolder: str | None = None
    files: tuple[FileRecord, ...]


class RetentionRecord(BaseModel):
    """How much of a delta the output kept (`remerge.merging.retention`); older manifests have no
    norm of the ``delta``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    elements: int
    delta: float | None = None
    kept: float | None
    noise: float | None
    unchanged: float


class RetentionReport(BaseModel):
    """Delta retention of a merge, overall and by tensor; ``measured`` on a sample or in full."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: Literal["sample", "full"]
    overall: RetentionRecord
    tensors: dict[str, RetentionRecord]


class Manifest(BaseModel):
    """The content of ``remerge.json``.

    ``formats`` counts the base's quantised tensors by format, ``written`` those that the output has
    in a format of its own; ``conflicts`` says whether several
    adapters get along, with the worst modules of every pair.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["remerge/1"] = "remerge/1"
    merge_key: str
    plan_id: str
    recipe: Recipe
    reproducible: Literal["everywhere", "same-stack"]
    base: InputRecord
    adapters: tuple[InputRecord, ...]
    outputs: tuple[FileRecord, ...]
    tensors: dict[str, int]
    formats: dict[str, int] = {}
    written: dict[str, int] = {}
    retention: RetentionReport | None = None
    conflicts: ConflictReport | None = None
    notes: tuple[str, ...]
    versions: dict[str, str]


def to_bytes(manifest: BaseModel) -> bytes:
    """A manifest, of whatever kind, as it stands on disk."""
    document = manifest.model_dump(mode="json")
    return (json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an output directory; raises `BadInput` when there is no valid one."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise BadInput(f"{directory} is not a directory.")
    if not path.is_file():
        raise BadInput(
            f"{directory} has no {MANIFEST}.",
            why="It was not made by remerge, or its making never ended.",
        )
    content = path.read_bytes()
    if b'"remerge-extraction/' in content:
        raise BadInput(
            f"{directory} is an adapter that `remerge extract` found, not a merge.",
            hint=f"Merge it: remerge merge BASE {directory} -o OUT.",
        )
    return parsed(path, content, Manifest)


def parsed(path: Path, content: bytes, kind: type[M]) -> M:
    """A manifest of one kind from the bytes of ``path``; raises `BadInput` when it is none."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path} is not a valid manifest ({where}: {first['msg']}).") from error
