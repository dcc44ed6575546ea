"""What is known of an artefact besides its manifest: its names in a store, when it was made, what
was measured of it, and what its base was made from in turn."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remerge.artefacts import user_index
from remerge.artefacts.evaluations import Evaluation, evaluation_of, statement_from
from remerge.artefacts.found_files import manifest_at
from remerge.artefacts.manifest import MANIFEST, PROVENANCE
from remerge.artefacts.manifest_facts import InputTold, Told, read_told
from remerge.artefacts.test_result import tests_of
from remerge.artefacts.traced import Kept, Library, MadeBy, Origin
from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object

_DEEPEST = 16
_LARGEST = 100_000_000


def origin_of(
    told: Told, manifest: Path, output: Path, library: Library | None, digests: Collection[str]
) -> tuple[Origin, tuple[str, ...]]:
    """What a manifest on disk tells of an ``output`` (a file, or a directory), with what the store
    adds, and where provenance and manifest contradict one another. ``digests`` are the SHA-256 of
    the files that are asked about."""
    kept = same_manifest(told, library)
    beside = [_read(path) for path in sorted(tests_of(output).glob("*.json"))]
    statements = dict.fromkeys((*beside, *(s for one in kept for s in one.statements)))
    prefix = "" if manifest.name == MANIFEST else manifest.name.removesuffix(MANIFEST)
    provenance = _document(_read(manifest.with_name(f"{prefix}{PROVENANCE}")))
    differs = ()
    if provenance is not None and not _binds(provenance, told):
        differs = (
            f"{manifest.name} is not the one that {prefix}{PROVENANCE} names: one of them was "
            "changed.",
        )
    if provenance is None:
        provenance = next((_document(one.provenance) for one in kept if one.provenance), None)
    origin = Origin(
        told=told,
        title=told.merge_key or told.kind,
        kind=told.kind,
        artefact=kept[0].artefact if kept else None,
        names=tuple(name for one in kept for name in one.names),
        collected=any(one.collected for one in kept),
        made=None if provenance is None else _made_by(provenance),
        evaluations=_evaluations(statements, digests),
        before=_before(told, library),
    )
    return origin, differs


def origin_of_kept(kept: Kept, library: Library, digests: Collection[str]) -> Origin:
    """What a store tells of an artefact; of an adapter or a base without a manifest its name."""
    told = None if kept.manifest is None else read_told(kept.manifest, f"{kept.title}'s manifest")
    provenance = _document(kept.provenance)
    return Origin(
        told=told,
        title=kept.title,
        kind=kept.kind if told is None else told.kind,
        artefact=kept.artefact,
        names=kept.names,
        collected=kept.collected,
        made=None if provenance is None else _made_by(provenance),
        evaluations=_evaluations(dict.fromkeys(kept.statements), digests),
        before=() if told is None else _before(told, library),
    )


def same_manifest(told: Told, library: Library | None) -> Sequence[Kept]:
    """The artefacts of a store that have this very manifest."""
    if library is None:
        return ()
    return [one for one in library.with_file(told.sha256) if one.manifest == told.content]


def _before(told: Told, library: Library | None) -> tuple[Told, ...]:
    """What the base was made from where remerge made it, and so on to one that it did not make."""
    found: list[Told] = []
    base = told.base
    while len(found) < _DEEPEST:
        made = _maker_of(base, library)
        if made is None or made.sha256 in {told.sha256, *(one.sha256 for one in found)}:
            break
        found.append(made)
        base = made.base
    return tuple(found)


def _maker_of(base: InputTold, library: Library | None) -> Told | None:
    """The manifest of an artefact that was used as a base: in the store, else where the base was
    last seen, if the files that this manifest names are those."""
    files = {file.name: file.sha256 for file in base.files}
    for kept in () if library is None else library.with_files(files):
        if kept.manifest is not None:
            with suppress(BadInput):
                return read_told(kept.manifest, kept.title)
    place = user_index.location(files)
    told = None if place is None else manifest_at(place / MANIFEST)
    if told is None or not base.digests or not base.digests <= set(told.by_digest):
        return None
    return told


def _evaluations(statements: Collection[bytes], digests: Collection[str]) -> tuple[Evaluation, ...]:
    """Test results in short, oldest first; one that is damaged tells nothing."""
    found: list[Evaluation] = []
    for content in statements:
        with suppress(BadInput):
            found.append(evaluation_of(statement_from(content, "A test result"), digests))
    return tuple(sorted(found, key=lambda one: one.date))


def _binds(provenance: dict[str, Any], told: Told) -> bool:
    """Whether a statement names this manifest; one that names none says nothing against it."""
    subjects = [as_object(one) or {} for one in as_list(provenance.get("subject")) or []]
    named = [
        (as_object(one.get("digest")) or {}).get("sha256")
        for one in subjects
        if str(one.get("name", "")).endswith(MANIFEST)
    ]
    return not named or told.sha256 in named


def _made_by(provenance: dict[str, Any]) -> MadeBy | None:
    predicate = as_object(provenance.get("predicate"))
    if predicate is None:
        return None
    run = as_object(predicate.get("runDetails")) or {}
    builder = as_object(run.get("builder")) or {}
    metadata = as_object(run.get("metadata")) or {}
    versions = as_object(builder.get("version")) or {}
    return MadeBy(
        builder=_text(builder.get("id")),
        versions={name: value for name, value in versions.items() if isinstance(value, str)},
        started=_text(metadata.get("startedOn")),
        finished=_text(metadata.get("finishedOn")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _document(content: bytes | None) -> dict[str, Any] | None:
    try:
        return None if not content else as_object(json.loads(content))
    except (ValueError, RecursionError):
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size < _LARGEST else b""
    except OSError:
        return b""
