"""The manifest of a merge: what was made, from what, by what, with which digests.

``remerge.json`` is the mark of completion and is the same for the same merge; times and resources
go to ``provenance.json`` (`remerge.artefacts.provenance`). Neither holds an absolute path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.records import (
    CARD,
    MANIFEST,
    PREPARATIONS,
    PROVENANCE,
    FileRecord,
    InputRecord,
    RetentionRecord,
    RetentionReport,
    parsed,
    to_bytes,
)
from remerge.errors import BadInput
from remerge.merging.recipe import Recipe

__all__ = [
    "CARD",
    "MANIFEST",
    "PREPARATIONS",
    "PROVENANCE",
    "FileRecord",
    "InputRecord",
    "Manifest",
    "RetentionRecord",
    "RetentionReport",
    "parsed",
    "read_manifest",
    "to_bytes",
]


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
