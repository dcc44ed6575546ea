"""The manifest of what an engine wrote: what it was made from, by which engine, and the type of
every tensor where that is told.

It is ``remerge.json`` in an output directory, and lies beside an output that is one file; it is the
same for the same inputs and holds no absolute path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.manifest import MANIFEST, FileRecord, InputRecord, parsed
from remerge.merging.recipe import Recipe
from remerge.outputs.single_file import manifest_beside

_MARK = b'"remerge-engine/'


class TensorRecord(BaseModel):
    """One tensor of the output: its shape (rows before columns) and type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    type: str


class Origin(BaseModel):
    """What an output says of itself: names of base and adapters, the base's Hub id if it has one.
    Of a checkpoint that remerge merged before, these are its own base and adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_id: str | None = None
    adapters: tuple[str, ...] = ()


class EngineManifest(BaseModel):
    """What an engine wrote.

    ``reproducible``: ``same-stack`` where the same engine gives the same bytes, ``not proven``
    where nobody saw it do so. ``files`` are inputs besides base and adapters, by option.
    ``weight_error`` is the root mean square of what quantised weights miss, over that of the
    weights, on a sample of every tensor; ``measured`` is how far the output is from the merge,
    where the engine's own logits were taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["remerge-engine/1"] = "remerge-engine/1"
    merge_key: str
    plan_id: str
    recipe: Recipe
    engine: str
    origin: Origin
    reproducible: Literal["same-stack", "not proven"]
    base: InputRecord
    adapters: tuple[InputRecord, ...]
    files: dict[str, FileRecord] = {}
    outputs: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...] = ()
    bits_per_weight: float
    weight_error: float | None = None
    measured: dict[str, float] = {}
    notes: tuple[str, ...]
    versions: dict[str, str]


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output lies, be it a directory or one file."""
    return output / MANIFEST if output.is_dir() else manifest_beside(output)


def is_engine_made(output: Path) -> bool:
    """Whether an engine wrote this output, by its manifest."""
    path = manifest_path(output)
    return path.is_file() and _MARK in path.read_bytes()


def read_engine_manifest(output: Path) -> EngineManifest:
    """The manifest of what an engine wrote; raises `BadInput` when it is no valid one."""
    path = manifest_path(output)
    return parsed(path, path.read_bytes(), EngineManifest)
