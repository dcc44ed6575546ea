"""Deriving an output again and comparing it, without a second copy on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, local
from typing import Any

import torch

from remerge.artefacts.adapter_manifest import AdapterManifest, is_combined, read_adapter_manifest
from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_manifest import (
    EngineManifest,
    is_engine_made,
    read_engine_manifest,
)
from remerge.artefacts.making import Report
from remerge.artefacts.manifest import Manifest, read_manifest
from remerge.errors import BadInput, IntegrityError, NotReproduced
from remerge.merging.budget import Resources
from remerge.merging.local import derive
from remerge.merging.plan import OutputFile, Plan
from remerge.outputs.planning import make_plan, open_inputs
from remerge.sources.dtypes import itemsize, torch_dtype
from remerge.sources.storage import InputFile, aligned_buffer
from remerge.validation.findings import (
    VerifyReport,
    check_side_files,
    failure,
    restore_preparations,
)
from remerge.validation.origins import adapters_of, base_digests, check_input, place_of
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
) -> VerifyReport:
    """Derive every output file from base and adapters and compare it with what lies in ``output``.

    Base and adapters are found by the manifest (Hub id and commit, or where they were last seen)
    unless given. Raises `IntegrityError` (exit 4) when a file differs from its manifest,
    `NotReproduced` (exit 5) when the derivation does, each naming the first difference.
    """
    manifest = _manifest(output)
    _check_present(output if output.is_dir() else output.parent, manifest)
    inputs = open_inputs(
        base or place_of(manifest.base, "base"),
        adapters_of(manifest.adapters, adapters),
        copy_code=manifest.recipe.copy_code,
    )
    inputs = replace(inputs, original=manifest.recipe.base_precision == "original")
    for record, opened in zip(manifest.adapters, inputs.adapters, strict=True):
        check_input(record, opened.path, opened.digests(), "adapter")
    plan = make_plan(inputs, manifest.recipe, max_memory)
    if plan.plan_id != manifest.plan_id:
        raise NotReproduced(
            f"{output} was planned differently: its plan id is {manifest.plan_id[:16]}, today's "
            f"is {plan.plan_id[:16]}.",
            why="Another version of remerge or transformers made it, or the base is another one.",
        )
    if isinstance(manifest, AdapterManifest):
        # It always imports transformers, which takes seconds; most merges can do without.
        from remerge.validation.verify_adapter import verify_adapter

        check_input(manifest.base, plan.base.path, base_digests(plan), "base")
        return verify_adapter(
            output, manifest, inputs, plan, max_memory, threads, device=device, report=report
        )
    if isinstance(manifest, EngineManifest):
        check_input(manifest.base, plan.base.path, base_digests(plan), "base")
        return verify_engine_made(output, manifest, inputs, plan, threads, pythons, report=report)
    sink = _Comparer(output)
    resources = Resources.of(max_memory, threads, quantised=plan.decodes, combines=plan.combines)
    twins = {file.twin.name for file in plan.files if file.twin is not None}
    unread = [shard for shard in plan.base.shards if shard.name not in twins]
    with plan.open(device) as merged:
        restore_preparations(merged, plan, output)
        counter = _counter(sum(part.size for part in (*plan.files, *unread)), report)
        digests = derive(merged, plan.files, unread, sink, resources, counter)
    digests["config.json"] = file_digest(plan.base.path / "config.json")
    check_input(manifest.base, plan.base.path, digests, "base")
    _judge(output, manifest, plan, sink)
    compared = sum(record.size for record in manifest.outputs)
    return VerifyReport(
        output, manifest.merge_key, len(manifest.outputs), len(plan.tensors), compared, plan.notes
    )


def _manifest(output: Path) -> Manifest | AdapterManifest | EngineManifest:
    if is_combined(output):
        return read_adapter_manifest(output)
    return read_engine_manifest(output) if is_engine_made(output) else read_manifest(output)


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


def _check_present(output: Path, manifest: Manifest | AdapterManifest | EngineManifest) -> None:
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


def _counter(total: int, report: Report) -> Callable[[int, str], None]:
    done = 0
    lock = Lock()

    def add(nbytes: int, tensor: str) -> None:
        nonlocal done
        with lock:
            done += nbytes
            report(done, total, tensor)

    return add


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
