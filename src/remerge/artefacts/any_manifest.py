"""A manifest of whatever kind, from its bytes: they may have come from anywhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.manifest import MANIFEST, PROVENANCE, FileRecord, Manifest, parsed
from remerge.errors import BadInput

# What was made from base, adapters and recipe, and can be derived again.
DerivedManifest = Manifest | EngineManifest | AdapterManifest
AnyManifest = DerivedManifest | ExtractionManifest

_KINDS: dict[str, type[AnyManifest]] = {
    "remerge/1": Manifest,
    "remerge-engine/1": EngineManifest,
    "remerge-adapter/1": AdapterManifest,
    "remerge-extraction/1": ExtractionManifest,
}
# A model of a million tensors has one of 200 MB.
_LONGEST = 2**30


def manifest_from(content: bytes, where: str | Path) -> AnyManifest:
    """The manifest that these bytes are, by its ``format``; ``where`` names it in messages.

    Raises `BadInput` for anything else, and for one that names a file outside of its directory.
    """
    where = Path(where)
    try:
        document: Any = json.loads(content)
        kind = _KINDS.get(document["format"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInput(
            f"{where} is not a manifest.",
            hint="Give an output of remerge, or the remerge.json that came with it.",
        ) from None
    if kind is None:
        raise BadInput(
            f"{where} is a manifest of a format that this remerge does not know: "
            f"{document['format']!r}.",
            why="A newer remerge made it.",
        )
    found = parsed(where, content, kind)
    for record in _files(found):
        if not _is_inside(record.name):
            raise BadInput(f"The manifest {where} names {record.name!r}, outside of its directory.")
    names = [record.name for record in found.outputs]
    for name, count in Counter(names).items():
        if count > 1 or name in (MANIFEST, PROVENANCE):
            raise BadInput(f"The manifest {where} names {name!r} among the outputs, as none does.")
    return found


def read_any_manifest(path: Path) -> AnyManifest:
    """The manifest in a file; raises `BadInput` when there is no valid one."""
    return manifest_from(content_of(path), path)


def content_of(path: Path) -> bytes:
    """The bytes of a manifest's file; raises `BadInput` for what is too long to be one."""
    try:
        if path.stat().st_size > _LONGEST:
            raise BadInput(f"{path} is too long for a manifest.")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error


def _files(manifest: AnyManifest) -> Iterator[FileRecord]:
    yield from manifest.outputs
    yield from manifest.base.files
    if isinstance(manifest, ExtractionManifest):
        yield from manifest.merged.files
        return
    for adapter in manifest.adapters:
        yield from adapter.files
    if isinstance(manifest, EngineManifest):
        yield from manifest.files.values()


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file below where it stands, in one spelling."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name == "/".join(parts) and ".." not in parts and "\0" not in name
