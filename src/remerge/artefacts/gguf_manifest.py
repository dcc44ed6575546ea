"""The manifest of a GGUF file: what it was made from, and the type of every tensor.

It lies beside the file as ``remerge.json``, is the same for the same inputs, and holds no absolute
path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import MANIFEST, FileRecord, InputRecord, parsed
from remerge.merging.recipe import Recipe

_MARK = b'"remerge-gguf/'


class TensorRecord(BaseModel):
    """One tensor of the file: its shape (rows before columns) and ggml's type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    type: str


class GgufManifest(BaseModel):
    """The content of ``remerge.json`` beside a GGUF file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["remerge-gguf/1"] = "remerge-gguf/1"
    merge_key: str
    plan_id: str
    recipe: Recipe
    reproducible: Literal["everywhere", "same-stack"]
    base: InputRecord
    adapters: tuple[InputRecord, ...]
    outputs: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]
    bits_per_weight: float
    notes: tuple[str, ...]
    versions: dict[str, str]


def is_gguf(directory: Path) -> bool:
    """Whether a directory holds a GGUF file of ours, by its manifest."""
    path = directory / MANIFEST
    return path.is_file() and _MARK in path.read_bytes()


def read_gguf_manifest(directory: Path) -> GgufManifest:
    """The manifest of a GGUF file; raises `BadInput` when it is no valid one."""
    path = directory / MANIFEST
    return parsed(path, path.read_bytes(), GgufManifest)
