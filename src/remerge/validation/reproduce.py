"""From a manifest, found anywhere, to the same bytes: for comparison, or as an artefact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from remerge.artefacts.any_manifest import (
    AnyManifest,
    DerivedManifest,
    content_of,
    manifest_from,
)
from remerge.artefacts.card.writing import card_to_keep, write_new_card
from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.making import Report, remember
from remerge.artefacts.making_again import (
    check_reproduced,
    derive_digests,
    the_file,
    work_of,
    write_again,
)
from remerge.artefacts.manifest import MANIFEST, PREPARATIONS
from remerge.artefacts.recording import write_provenance
from remerge.artefacts.rederiving import (
    Derivation,
    Elsewhere,
    Sources,
    check_now,
    nowhere,
    open_again,
    sources_of,
)
from remerge.errors import BadInput, IntegrityError, NotReproduced, UsageError
from remerge.outputs.directory import (
    check_free,
    check_place,
    check_space,
    publish,
    workplace,
    write_durably,
)
from remerge.outputs.single_file import (
    FILE,
    check_file,
    file_workplace,
    finish_file,
    manifest_beside,
    publish_file,
)
from remerge.validation.verify import verify


@dataclass(frozen=True)
class Reproduced:
    """What was derived again: its manifest, the ``files`` and ``bytes`` that are the same, where
    they were ``written`` if asked for, and the outputs of the source that are ``damaged`` there."""

    source: Path
    manifest: DerivedManifest
    files: int
    bytes: int
    seconds: float
    written: Path | None
    damaged: tuple[str, ...] = ()

    @property
    def merge_key(self) -> str:
        return self.manifest.merge_key


@dataclass(frozen=True)
class _Found:
    """A manifest with its bytes, and its outputs where they lie; none where it was found alone.

    ``output`` is what `verify` takes.
    """

    path: Path
    content: bytes
    manifest: AnyManifest
    output: Path | None
    outputs: Mapping[str, Path]

    @property
    def preparations(self) -> Path | None:
        """The recorded numbers beside the manifest, where they are still those that it names."""
        path = self.path.with_name(PREPARATIONS)
        recorded = {record.name: record.sha256 for record in self.manifest.outputs}
        if PREPARATIONS not in recorded or not path.is_file():
            return None
        return path if file_digest(path) == recorded[PREPARATIONS] else None

    def damaged(self) -> tuple[str, ...]:
        """Outputs that are missing or other bytes than the manifest has."""
        names: list[str] = []
        for record in self.manifest.outputs:
            path = self.outputs.get(record.name)
            if path is None:
                continue
            whole = path.is_file() and path.stat().st_size == record.size
            if not whole or file_digest(path) != record.sha256:
                names.append(record.name)
        return tuple(names)


def reproduce(
    source: Path,
    out: Path | None,
    *,
    base: str | Path | None,
    adapters: Sequence[str | Path],
    files: Mapping[str, Path],
    overwrite: bool,
    max_memory: int,
    threads: int | None,
    device: torch.device,
    pythons: Mapping[str, str],
    report: Report,
    progress: bool,
    elsewhere: Elsewhere = nowhere,
) -> Reproduced:
    """Derive every output of a manifest again and compare its digest; with ``out`` write the
    artefact there, or leave ``out`` as it was.

    Raises `BadInput` where there is no manifest or an input is not known, `IntegrityError` where an
    input is not the one of the manifest or (without ``out``) a file of ``source`` is damaged,
    `NotReproduced` where a byte differs.
    """
    started = time.time()
    found = _find(source)
    damaged = found.damaged()
    if damaged and out is None:
        raise IntegrityError(
            f"{found.outputs[damaged[0]]} is not the file that its manifest names"
            + (f" ({len(damaged)} such files)." if len(damaged) > 1 else "."),
            why="It was changed, damaged or removed since it was made.",
            hint=f"Make it anew: remerge reproduce {source} -o NEW.",
        )
    manifest = found.manifest
    code = not isinstance(manifest, ExtractionManifest) and manifest.recipe.copy_code
    known = sources_of(base, adapters, copy_code=code, progress=progress)
    derivation = open_again(
        manifest,
        Sources(known.base, known.adapters, files, elsewhere),
        max_memory=max_memory,
        preparations=found.preparations,
        progress=progress,
    )
    try:
        if out is None:
            digests = derive_digests(
                derivation, device=device, threads=threads, pythons=pythons, report=report
            )
            check_reproduced(derivation, digests)
        else:
            _write(
                derivation,
                found,
                out,
                overwrite=overwrite,
                started=started,
                threads=threads,
                device=device,
                pythons=pythons,
                report=report,
            )
    except NotReproduced:
        if found.output is None or damaged:
            raise
        # Where the file is there, it can be said what differs in it.
        verify(
            found.output,
            base=base,
            adapters=adapters,
            max_memory=max_memory,
            threads=threads,
            device=device,
            pythons=pythons,
            elsewhere=elsewhere,
        )
        raise
    if base is not None or adapters:
        # Where it was told to look, the next command need not be told.
        remember(derivation.plan, derivation.manifest.base, derivation.manifest.adapters)
    records = derivation.manifest.outputs
    total = sum(record.size for record in records)
    seconds = time.time() - started
    return Reproduced(source, derivation.manifest, len(records), total, seconds, out, damaged)


def _write(
    derivation: Derivation,
    found: _Found,
    out: Path,
    *,
    overwrite: bool,
    started: float,
    threads: int | None,
    device: torch.device,
    pythons: Mapping[str, str],
    report: Report,
) -> None:
    """Make the artefact in its place, whole or not at all, with the manifest as it was found."""
    manifest = derivation.manifest
    name, alone = None, False
    if isinstance(manifest, EngineManifest):
        name, alone = the_file(manifest)
    if alone and out.name != name:
        raise UsageError(
            f"The manifest is that of a file called {name}, and {out} is another name.",
            hint=f"Give -o {out / str(name) if out.is_dir() else out.with_name(str(name))}.",
        )
    check_place(out, derivation.inputs.paths, is_file=alone)
    if alone:
        # What a kill cut between file and manifest is ended, and then in the way.
        finish_file(out)
        check_file(out, overwrite=overwrite)
    else:
        check_free(out, overwrite=overwrite)
    check_space(out, sum(record.size for record in manifest.outputs))
    state = {"reproduced": manifest.merge_key, "started": started}
    with (file_workplace if alone else workplace)(out, state) as place:
        if alone:
            check_now(derivation)
            work = work_of(derivation, threads, pythons, report)
            (written,) = work.write(place.work, FILE, alone=True)
            digests = {str(name): written.sha256}
        else:
            digests = write_again(
                derivation,
                place.work,
                device=device,
                threads=threads,
                pythons=pythons,
                report=report,
            )
        check_reproduced(derivation, digests)
        write_provenance(
            place.work,
            found.content,
            started=started,
            device=device,
            threads=threads,
            name=manifest_beside(out).name if alone else MANIFEST,
            bytesWritten=sum(record.size for record in manifest.outputs),
        )
        write_durably(place.work / MANIFEST, found.content)
        if not alone:
            write_new_card(place.work, manifest, derivation.inputs, card_to_keep(out))
        (publish_file if alone else publish)(place)


def _find(source: Path) -> _Found:
    """The manifest of an output, or the manifest that this file is."""
    if source.is_dir():
        return _beside(source / MANIFEST, source, _ends_of(source))
    if not source.is_file():
        raise BadInput(
            f"There is no {source}.",
            hint="Give an output of remerge, or a manifest: remerge.json, FILE.gguf.remerge.json.",
        )
    if _is_document(source):
        content = content_of(source)
        return _Found(source, content, manifest_from(content, source), None, {})
    manifest = manifest_beside(source)
    if manifest.is_file():
        content = content_of(manifest)
        found = manifest_from(content, manifest)
        # A file that was renamed with its manifest is still that file.
        names = [record.name for record in found.outputs]
        output = source if names == [source.name] else None
        outputs = {names[0]: source} if len(names) == 1 else {}
        return _Found(manifest, content, found, output, outputs)
    return _beside(source.parent / MANIFEST, source.parent, f"{manifest.name} nor {MANIFEST}")


def _beside(path: Path, folder: Path, lacking: str) -> _Found:
    """The manifest of a directory."""
    if not path.is_file():
        raise BadInput(
            f"{folder} has no {lacking}.",
            why="It was not made by remerge, or its making never ended.",
            hint="Give the manifest that it came with, wherever that lies.",
        )
    content = content_of(path)
    found = manifest_from(content, path)
    outputs = {record.name: folder / record.name for record in found.outputs}
    return _Found(path, content, found, folder, outputs)


def _ends_of(folder: Path) -> str:
    others = sorted(p.name for p in folder.glob(f"*.{MANIFEST}"))
    return f"{MANIFEST}, but {others[0]}" if others else MANIFEST


def _is_document(path: Path) -> bool:
    """Whether a file is JSON by how it begins: no weights begin so."""
    with path.open("rb") as stream:
        return stream.read(64).lstrip()[:1] == b"{"
