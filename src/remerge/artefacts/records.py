"""What every kind of manifest is made of, readable without torch: files, inputs and the runs that
trained them, how much of a delta was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from remerge.errors import BadInput
from remerge.outputs.directory import CARD, MANIFEST, PROVENANCE

__all__ = [
    "CARD",
    "MANIFEST",
    "PREPARATIONS",
    "PROVENANCE",
    "FileRecord",
    "InputRecord",
    "RetentionRecord",
    "RetentionReport",
    "RunRecord",
    "parsed",
    "to_bytes",
]

M = TypeVar("M", bound=BaseModel)

PREPARATIONS = "remerge.preparations"


class FileRecord(BaseModel):
    """A file by name, size in bytes and SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    sha256: str


class RunRecord(BaseModel):
    """The training run that made an adapter (`remerge.adapters.training_run`): who names it, its id
    there, and the step that the adapter is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["given", "wandb", "mlflow", "trainer"]
    id: str | None = None
    step: int | None = None
    epoch: float | None = None
    best_metric: float | None = None


class InputRecord(BaseModel):
    """A base or an adapter: its name, the Hub's id and commit if it came from there, its files, and
    of an adapter the run that trained it where that is known; older manifests have no ``run``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub_id: str | None = None
    commit: str | None = None
    subfolder: str | None = None
    files: tuple[FileRecord, ...]
    run: RunRecord | None = None


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


def to_bytes(manifest: BaseModel) -> bytes:
    """A manifest, of whatever kind, as it stands on disk."""
    document = manifest.model_dump(mode="json")
    return (json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def parsed(path: Path, content: bytes, kind: type[M]) -> M:
    """A manifest of one kind from the bytes of ``path``; raises `BadInput` when it is none."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path} is not a valid manifest ({where}: {first['msg']}).") from error
