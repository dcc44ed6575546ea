"""The manifest of an extraction: which adapter was found between which models, and how near.

It lies beside the adapter as ``remerge.json``, is the same for the same inputs on one numerical
stack, and holds no absolute path.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from remerge.artefacts.records import FileRecord, InputRecord


class ExtractionOptions(BaseModel):
    """What was asked for; ``rank`` is the most that a tensor may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    energy: float | None = None
    dtype: Literal["F32", "F16", "BF16"] = "F32"
    modules_to_save: bool = True
    strict: bool = False


class TensorRecord(BaseModel):
    """One parameter with factors: its rank, the share of the squared norm of the difference that
    they explain, and the norm of what they miss relative to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    rank: int
    explained_energy: float
    relative_error: float
    norm: float


class ExtractionManifest(BaseModel):
    """The content of ``remerge.json`` beside an extracted adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["remerge-extraction/1"] = "remerge-extraction/1"
    kind: Literal["extraction"] = "extraction"
    reproducible: Literal["same-stack"] = "same-stack"
    options: ExtractionOptions
    base: InputRecord
    merged: InputRecord
    outputs: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]
    saved_whole: tuple[str, ...]
    left_out: tuple[str, ...]
    unchanged: int
    explained_energy: float
    notes: tuple[str, ...]
    versions: dict[str, str]
