"""Making an output directory: derive every file, write the manifest, publish it whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts import user_index
from remerge.artefacts.card.writing import card_to_keep, write_new_card
from remerge.artefacts.conflicting import conflicts_in
from remerge.artefacts.digests import adapter_digests, file_digest, input_digests
from remerge.artefacts.manifest import (
    MANIFEST,
    PREPARATIONS,
    FileRecord,
    InputRecord,
    Manifest,
    read_manifest,
    to_bytes,
)
from remerge.artefacts.recording import file_record, manifest_of, tells_runs, write_provenance
from remerge.artefacts.writing import Files, Report, counted
from remerge.errors import BadInput
from remerge.merging import preparations
from remerge.merging.budget import Resources, peak_memory
from remerge.merging.local import derive
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import OutputFile, Plan, SideFile, merge_key
from remerge.merging.retention import Meter, Mode
from remerge.outputs.directory import (
    Workplace,
    check_free,
    check_place,
    check_space,
    copy_durably,
    publish,
    sweep,
    workplace,
    write_durably,
)
from remerge.outputs.planning import Inputs
from remerge.sources.one_thread import one_thread
from remerge.version import __version__

_BLOCK = 2**24

# Looks at an output that is complete and not yet to be seen; what it raises, nothing is published.
Judge = Callable[[Path], None]


@dataclass(frozen=True)
class MergeResult:
    """What a merge did: the numbers of the closing summary, all measured."""

    output: Path
    manifest: Manifest
    seconds: float
    bytes_read: int
    bytes_written: int
    peak_memory: int
    resumed: tuple[str, ...] = ()
    already_there: bool = False


def make(
    inputs: Inputs,
    plan: Plan,
    out: Path,
    resources: Resources,
    *,
    device: torch.device,
    started: float,
    overwrite: bool = False,
    retention: Mode = "sample",
    report: Report = lambda done, total, tensor: None,
    judge: Judge | None = None,
) -> MergeResult:
    """Write the merge to ``out``, or leave ``out`` as it was. What ``judge`` refuses is not
    published; it is asked too of what was there before.

    ``started`` is when the command began (`time.time`): planning is part of the seconds told.

    Raises `UsageError` for an output that is in the way, `TryAgain` when the disk fails or fills,
    `Locked` while another process writes it, `BadInput` when a value overflows.
    """
    check_place(out, inputs.paths)
    read = adapter_digests(plan)
    done = _already_there(inputs, plan, out)
    if done is not None:
        sweep(out)
        if judge is not None:
            judge(out)
        return MergeResult(out, done, time.time() - started, 0, 0, peak_memory(), (), True)
    check_free(out, overwrite=overwrite)
    check_space(out, plan.bytes_to_write)
    kept = card_to_keep(out)
    state = _state(plan, read)
    with (
        workplace(out, state) as place,
        plan.open(device) as merged,
    ):
        finished = _finished(plan, place)
        left = [file for file in plan.files if file.name not in finished]
        meter = Meter(retention)
        for receipt in finished.values():
            meter.restore(receipt.get("retention", {}))
        sink = _Writer(place, meter)
        conflicts = conflicts_in(plan, resources.threads)
        prepare_into(place.work, merged, plan, resources.threads)
        twins = {file.twin.name for file in plan.files if file.twin is not None}
        unread = [shard for shard in plan.base.shards if shard.name not in twins]
        counter = counted(sum(part.size for part in (*left, *unread)), report)
        base_digests = derive(merged, left, unread, sink, resources, counter, meter)
        base_digests |= {name: record["base"] for name, record in finished.items()}
        if any(adapter.changed() for adapter in plan.adapters) or adapter_digests(plan) != read:
            raise BadInput("An adapter changed while it was merged.")
        digests = {name: r["sha256"] for name, r in finished.items()} | sink.digests
        records = [FileRecord(name=f.name, size=f.size, sha256=digests[f.name]) for f in plan.files]
        records += [write_side_file(place.work, side) for side in plan.side_files]
        if (place.work / PREPARATIONS).exists():
            records.append(file_record(place.work / PREPARATIONS, PREPARATIONS))
        manifest = manifest_of(inputs, plan, base_digests, read, records, meter, conflicts)
        written = sum(record.size for record in records)
        write_provenance(
            place.work,
            to_bytes(manifest),
            started=started,
            device=device,
            threads=resources.threads,
            chunk=resources.chunk,
            bytesRead=plan.bytes_to_read,
            bytesWritten=written,
        )
        seconds = time.time() - started
        write_durably(place.work / MANIFEST, to_bytes(manifest))
        if judge is not None:
            judge(place.work)
        write_new_card(place.work, manifest, inputs, kept)
        publish(place)
    remember(plan, manifest.base, manifest.adapters)
    return MergeResult(
        out,
        manifest,
        seconds,
        plan.bytes_to_read,
        written,
        peak_memory(),
        tuple(sorted(finished)),
    )


class _Writer:
    """A sink that writes the output's files into the workplace, with a receipt for each."""

    def __init__(self, place: Workplace, meter: Meter) -> None:
        self._place = place
        self._meter = meter
        self._files = Files(place.work)
        self.put = self._files.put
        self.digests: dict[str, str] = {}

    def finish(self, file: OutputFile, digest: str, twin_digest: str | None) -> None:
        self._files.finish(file)
        self.digests[file.name] = digest
        changes = (piece.plan.touched_by for piece in file.pieces)
        measured = self._meter.document({c.tensor for c in changes if c is not None})
        receipt = {"sha256": digest, "base": twin_digest, "retention": measured}
        self._place.write_receipt(file.name, receipt)


def _state(plan: Plan, digests: Mapping[str, str]) -> dict[str, object]:
    """What must be equal for the work of a killed run to be taken up again."""
    statuses = [(shard.name, shard.path.stat()) for shard in plan.base.shards]
    return {
        "version": __version__,
        "plan": plan.plan_id,
        "adapters": dict(digests),
        "base": [[name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in statuses],
    }


def _finished(plan: Plan, place: Workplace) -> dict[str, dict[str, Any]]:
    """Files that a killed run finished, both sides read again: output and base as they were."""

    def holds(file: OutputFile) -> dict[str, Any] | None:
        receipt = place.receipt(file.name)
        path = place.work / file.name
        if receipt is None or file.twin is None or not path.is_file():
            return None
        if path.stat().st_size != file.size or file_digest(path) != receipt.get("sha256"):
            return None
        return receipt if file_digest(file.twin.path) == receipt.get("base") else None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        receipts = pool.map(holds, plan.files)
        return {f.name: r for f, r in zip(plan.files, receipts, strict=True) if r is not None}


def prepare_into(work: Path, merged: MergedCheckpoint, plan: Plan, threads: int) -> None:
    """Compute what needs more than a chunk, or take over what a killed run computed."""
    path = work / PREPARATIONS
    if path.exists():
        merged.prepared.update(preparations.restore(path, plan.steps))
        return
    with one_thread():
        merged.prepare_all(plan.touched.values(), threads)
    if plan.reproducible == "same-stack":
        temporary = path.with_suffix(".part")
        preparations.save(temporary, merged.prepared)
        temporary.rename(path)


def _already_there(inputs: Inputs, plan: Plan, out: Path) -> Manifest | None:
    """The manifest of ``out`` when this very merge is complete there, every file checked."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(out)
    except BadInput:
        return None
    if manifest.plan_id != plan.plan_id or not tells_runs(inputs, manifest.adapters):
        return None
    if manifest.merge_key != merge_key(plan, input_digests(plan)):
        return None
    for record in manifest.outputs:
        path = out / record.name
        if not path.is_file() or file_digest(path) != record.sha256:
            return None
    return manifest


def write_side_file(work: Path, side: SideFile) -> FileRecord:
    target = work / side.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if side.content is not None:
        write_durably(target, side.content)
    elif side.source is not None:
        copy_durably(side.source, target)
    return file_record(target, side.name)


def remember(plan: Plan, based: InputRecord, adapters: Sequence[InputRecord]) -> None:
    """Note digests and places, so that the next command need not read or ask."""
    base = {record.name: record.sha256 for record in based.files}
    user_index.remember_digests({s.path: base[s.name] for s in plan.base.shards})
    user_index.remember_location(base, plan.base.path)
    for adapter, record in zip(plan.adapters, adapters, strict=True):
        digests = {file.name: file.sha256 for file in record.files}
        user_index.remember_location(digests, adapter.path)
