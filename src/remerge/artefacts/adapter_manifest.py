"""The manifest of a new adapter: which adapters it combines, how, and how near it comes to that.

It lies beside the adapter as ``remerge.json``, is the same for the same inputs, and holds no
absolute path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import MANIFEST, FileRecord, InputRecord, parsed
from remerge.merging.recipe import Recipe

_MARK = b'"remerge-adapter/'


class FactorRecord(BaseModel):
    """One parameter with factors: their rank, whether they are exact but for the rounding of their
    dtype, and the norm of what they miss, that rounding included, relative to the change's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    rank: int
    exact: bool
    relative_error: float
    norm: float


class AdapterManifest(BaseModel):
    """The content of ``remerge.json`` beside an adapter that combines others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["remerge-adapter/1"] = "remerge-adapter/1"
    kind: Literal["adapter"] = "adapter"
    merge_key: str
    plan_id: str
    recipe: Recipe
    reproducible: Literal["everywhere", "same-stack"]
    base: InputRecord
    adapters: tuple[InputRecord, ...]
    outputs: tuple[FileRecord, ...]
    tensors: tuple[FactorRecord, ...]
    saved_whole: tuple[str, ...]
    unchanged: tuple[str, ...]
    exact: bool
    relative_error: float
    notes: tuple[str, ...]
    versions: dict[str, str]


def is_combined(directory: Path) -> bool:
    """Whether a directory holds an adapter that combines others, by its manifest."""
    path = directory / MANIFEST
    return path.is_file() and _MARK in path.read_bytes()


def read_adapter_manifest(directory: Path) -> AdapterManifest:
    """The manifest of a new adapter; raises `BadInput` when it is no valid one."""
    path = directory / MANIFEST
    return parsed(path, path.read_bytes(), AdapterManifest)
