"""What a manifest of any kind says: a merge's, an engine's, a new adapter's, an extraction's.

Whoever only asks where something came from reads them all alike, and those of a newer remerge as
well: what is not known here is passed over. Verifying reads each kind strictly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from remerge.errors import BadInput

_KINDS = {
    "remerge": "checkpoint",
    "remerge-adapter": "adapter",
    "remerge-extraction": "extracted adapter",
}
_ENGINE = "remerge-engine"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileTold(_Told):
    """A file by name, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


class InputTold(_Told):
    """A base or an adapter; ``run`` is the training run that made it, where that was known."""

    name: str
    hub_id: str | None = None
    commit: str | None = None
    subfolder: str | None = None
    run: dict[str, Any] | None = None
    files: tuple[FileTold, ...] = ()

    @property
    def title(self) -> str:
        """Name, commit and sub-folder in one word."""
        name = self.hub_id or self.name
        at = f"@{self.commit}" if self.commit else ""
        return f"{name}{at}:{self.subfolder}" if self.subfolder else f"{name}{at}"

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(file.sha256 for file in self.files)


class OriginTold(_Told):
    """What an engine's output says of where it came from at first."""

    base: str
    base_id: str | None = None
    adapters: tuple[str, ...] = ()


class RetainedTold(_Told):
    """How much of the delta the output kept, overall."""

    kept: float | None = None
    noise: float | None = None
    unchanged: float | None = None


class _Retention(_Told):
    overall: RetainedTold = RetainedTold()


class _Conflicts(_Told):
    advice: str = ""


class TensorTold(_Told):
    """A tensor of an engine's output, by the engine's name of its type."""

    name: str
    shape: tuple[int, ...]
    type: str


class _Content(_Told):
    format: str
    merge_key: str | None = None
    recipe: dict[str, Any] = {}
    options: dict[str, Any] = {}
    engine: str | None = None
    origin: OriginTold | None = None
    reproducible: str | None = None
    base: InputTold
    adapters: tuple[InputTold, ...] = ()
    merged: InputTold | None = None
    files: dict[str, FileTold] = {}
    outputs: tuple[FileTold, ...]
    tensors: Any = None
    retention: _Retention | None = None
    conflicts: _Conflicts | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Told:
    """A manifest, by its ``content`` as it stood on disk."""

    content: bytes = field(repr=False)
    says: _Content

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def kind(self) -> str:
        """checkpoint, gguf, onnx, ..., adapter, extracted adapter."""
        family = self.says.format.partition("/")[0]
        if family == _ENGINE:
            return str(self.says.recipe.get("format", "engine's output"))
        return _KINDS.get(family, family)

    @property
    def merge_key(self) -> str | None:
        return self.says.merge_key

    @property
    def base(self) -> InputTold:
        return self.says.base

    @property
    def adapters(self) -> tuple[InputTold, ...]:
        return self.says.adapters

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe; of an extraction, what was asked of it."""
        return self.says.recipe or self.says.options

    @cached_property
    def outputs(self) -> dict[str, FileTold]:
        """Output files by name; names that would lead out of their directory are left out."""
        return {file.name: file for file in self.says.outputs if _is_inside(file.name)}

    @cached_property
    def by_digest(self) -> dict[str, FileTold]:
        return {file.sha256: file for file in self.outputs.values()}

    @property
    def types(self) -> dict[str, TensorTold]:
        """The tensors of an engine's output by name, where the manifest tells them."""
        if self.says.format.partition("/")[0] != _ENGINE or not isinstance(self.says.tensors, list):
            return {}
        try:
            found = [TensorTold.model_validate(one) for one in self.says.tensors]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        except ValidationError:
            return {}
        return {tensor.name: tensor for tensor in found}

    def document(self) -> dict[str, Any]:
        """What it says, without the tensors; for `--json`."""
        says = self.says.model_dump(
            mode="json", exclude_none=True, exclude={"tensors", "options", "recipe", "files"}
        )
        return {"kind": self.kind, "manifest_sha256": self.sha256, **says, "recipe": self.recipe}


def read_told(content: bytes, where: str) -> Told:
    """Read a manifest of any kind; raises `BadInput` for what is none. ``where`` names it."""
    try:
        says = _Content.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{where} is not a valid manifest ({at}: {first['msg']}).") from error
    if says.format.partition("/")[0] not in (*_KINDS, _ENGINE):
        raise BadInput(f"{where} is no manifest of remerge: its format is {says.format[:100]!r}.")
    return Told(content, says)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
