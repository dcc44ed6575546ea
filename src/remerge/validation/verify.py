"""Deriving an output again and comparing it, without a second copy on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, local
from typing import Any

import torch

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.any_manifest import DerivedManifest, read_any_manifest
from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_manifest import EngineManifest, manifest_path
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.making import Report
from remerge.artefacts.making_again import derive_weights
from remerge.artefacts.manifest import PREPARATIONS, Manifest, read_manifest
from remerge.artefacts.rederiving import Elsewhere, nowhere, open_again, sources_of
from remerge.errors import BadInput, IntegrityError, NotReproduced
from remerge.merging.plan import OutputFile, Plan
from remerge.sources.dtypes import itemsize, torch_dtype
from remerge.sources.storage import InputFile, aligned_buffer
from remerge.validation.findings import VerifyReport, check_side_files, failure
from remerge.validation.verify_engine_made import verify_engine_made


@dataclass(frozen=True)
class _Difference:
    """The first byte that differs, and what it belongs to."""

    file: str
    offset: int
    what: str


def verify(
    output: Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    max_memory: int,
    threads: int | None = None,
    device: torch.device,
    pythons: Mapping[str, str],
    report: Report = lambda done, total, tensor: None,
    elsewhere: Elsewhere = nowhere,
) -> VerifyReport:
    """Derive every output file from base and adapters and compare it with what lies in ``output``.

    Base and adapters are found by the manifest (Hub id and commit, or where they were last seen)
    or ``elsewhere``, unless given. Raises `IntegrityError` (exit 4) when a file differs from its
    manifest, `NotReproduced` (exit 5) when the derivation does, each naming the first difference.
    """
    manifest = _manifest(output)
    folder = output if output.is_dir() else output.parent
    _check_present(folder, manifest)
    known = sources_of(base, adapters, copy_code=manifest.recipe.copy_code)
    sources = replace(known, elsewhere=elsewhere)
    recorded = folder / PREPARATIONS
    derivation = open_again(
        manifest,
        sources,
        max_memory=max_memory,
        preparations=recorded if _names(manifest, PREPARATIONS) else None,
    )
    if isinstance(manifest, AdapterManifest):
        # It always imports transformers, which takes seconds; most merges can do without.
        from remerge.validation.verify_adapter import verify_adapter

        return verify_adapter(output, manifest, derivation, threads, device=device, report=report)
    if isinstance(manifest, EngineManifest):
        return verify_engine_made(output, manifest, derivation, threads, pythons, report=report)
    sink = _Comparer(output)
    with tempfile.TemporaryDirectory(prefix="remerge-verify-") as place:
        derive_weights(derivation, sink, Path(place), device=device, threads=threads, report=report)
    _judge(output, manifest, derivation.plan, sink)
    plan = derivation.plan
    compared = sum(record.size for record in manifest.outputs)
    return VerifyReport(
        output, manifest.merge_key, len(manifest.outputs), len(plan.tensors), compared, plan.notes
    )


def _manifest(output: Path) -> DerivedManifest:
    path = manifest_path(output)
    if not path.is_file():
        # It says why there is none.
        return read_manifest(output)
    found = read_any_manifest(path)
    return read_manifest(output) if isinstance(found, ExtractionManifest) else found


def _names(manifest: DerivedManifest, name: str) -> bool:
    return any(record.name == name for record in manifest.outputs)


def _judge(output: Path, manifest: Manifest, plan: Plan, sink: _Comparer) -> None:
    recorded = {record.name: record.sha256 for record in manifest.outputs}
    for file in plan.files:
        difference = sink.differences.get(file.name)
        derived_as_recorded = sink.digests[file.name] == recorded.get(file.name)
        if difference is None and derived_as_recorded:
            continue
        where = f" First difference: {difference.what}." if difference else ""
        as_recorded = file_digest(output / file.name) == recorded.get(file.name)
        raise failure(output / file.name, where, as_recorded)
    check_side_files(output, plan, recorded)
    made = {file.name for file in plan.files} | {side.name for side in plan.side_files}
    foreign = sorted(recorded.keys() - made - {PREPARATIONS})
    if foreign:
        raise NotReproduced(
            f"The manifest of {output} names {foreign[0]}, which the merge does not make.",
            why="It was added to the manifest later, or the base has fewer files now.",
        )


def _check_present(output: Path, manifest: DerivedManifest) -> None:
    for record in manifest.outputs:
        path = output / record.name
        if not path.resolve().is_relative_to(output.resolve()):
            raise BadInput(f"The manifest of {output} names {record.name!r}, outside of it.")
        if not path.is_file():
            raise IntegrityError(f"{path} is missing, though the manifest names it.")
        if path.stat().st_size != record.size:
            raise IntegrityError(
                f"{path} has {path.stat().st_size:,} bytes; its manifest says {record.size:,}.",
                why="It was changed or damaged after the merge.",
            )


class _Comparer:
    """A sink that compares derived chunks with the files of an output directory."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._files: dict[str, InputFile] = {}
        self._lock = Lock()
        self._local: Any = local()
        self.digests: dict[str, str] = {}
        self.differences: dict[str, _Difference] = {}

    def put(self, file: OutputFile, offset: int, chunk: memoryview, length: int) -> None:
        with self._lock:
            if file.name not in self._files:
                self._files[file.name] = InputFile(self._output / file.name)
            existing = self._files[file.name]
        if not hasattr(self._local, "buffer") or len(self._local.buffer) < length:
            self._local.buffer = aligned_buffer(len(chunk))
        if existing.size != file.size:
            self._note(_Difference(file.name, 0, f"it has {existing.size} bytes, not {file.size}"))
            return
        existing.read_into(self._local.buffer, offset, length)
        derived = torch.frombuffer(chunk, dtype=torch.uint8, count=length)
        found = torch.frombuffer(self._local.buffer, dtype=torch.uint8, count=length)
        if torch.equal(derived, found):
            return
        position = int((derived != found).nonzero()[0])
        self._note(_describe(file, offset + position, offset, derived, found))

    def finish(self, file: OutputFile, digest: str, twin_digest: str | None) -> None:
        self.digests[file.name] = digest
        with self._lock:
            self._files.pop(file.name).close()

    def _note(self, difference: _Difference) -> None:
        with self._lock:
            known = self.differences.get(difference.file)
            if known is None or difference.offset < known.offset:
                self.differences[difference.file] = difference


def _describe(
    file: OutputFile, position: int, chunk_start: int, derived: torch.Tensor, found: torch.Tensor
) -> _Difference:
    piece = next((p for p in file.pieces if p.start <= position < p.stop), None)
    if piece is None:
        return _Difference(file.name, position, f"byte {position} of the header")
    size = itemsize(piece.plan.dtype)
    element = (position - piece.start) // max(size, 1)
    start = piece.start + element * size - chunk_start
    what = f"tensor {piece.plan.name}, element {element}"
    if size and start >= 0 and start + size <= len(derived):
        dtype = torch_dtype(piece.plan.dtype)
        pair = [t[start : start + size].clone().view(dtype)[0].item() for t in (found, derived)]
        what += f": stored {pair[0]}, derived {pair[1]}"
    return _Difference(file.name, position, what)
