"""Deriving what a manifest tells of a second time: into any sink, for its digests, or as files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.digests import side_digest
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.engine_work import Work
from remerge.artefacts.making import Report
from remerge.artefacts.preparing_again import prepare_again, write_sides
from remerge.artefacts.rederiving import Derivation, check_inputs, check_now
from remerge.artefacts.writing import Files, counted
from remerge.engines.forms import FORMS
from remerge.errors import BadInput, NotReproduced
from remerge.merging.budget import Resources
from remerge.merging.local import Sink, derive
from remerge.merging.plan import OutputFile
from remerge.sources.storage import sync_directory


def derive_digests(
    derivation: Derivation,
    *,
    device: torch.device,
    threads: int | None,
    pythons: Mapping[str, str],
    report: Report,
    work: Path | None = None,
) -> dict[str, str]:
    """SHA-256 of every output by name, as it is derived now; nothing stays on disk.

    What is several files from an engine, or an adapter, is written to a temporary directory, in
    ``work`` where the system's own is not to be used. Every
    byte of the inputs is read and compared with the manifest, as `check_now` does. Raises
    `IntegrityError` where an input differs, `UsageError` where an engine's environment is missing.
    """
    with tempfile.TemporaryDirectory(prefix="remerge-again-", dir=work) as folder:
        place = Path(folder)
        if isinstance(derivation.manifest, EngineManifest):
            check_now(derivation)
            name, alone = the_file(derivation.manifest)
            return work_of(derivation, threads, pythons, report).again(place, name, alone=alone)
        if isinstance(derivation.manifest, AdapterManifest):
            return _adapter(derivation, place, device, threads, report)
        digests = _Digests()
        prepared = derive_weights(
            derivation, digests, place, device=device, threads=threads, report=report
        )
    sides = {side.name: side_digest(side) for side in derivation.plan.side_files}
    return {**digests.found, **prepared, **sides}


def make_again(
    derivation: Derivation,
    out: Path,
    *,
    device: torch.device,
    threads: int | None,
    pythons: Mapping[str, str],
    report: Report,
) -> None:
    """Write every output that the manifest names into the directory ``out``, durably, each under
    its name there; the manifest and what is told of its making are the caller's.

    ``out`` is made, or was made empty by the caller, who owns it alone. Whatever fails, what was
    written is removed with it. Raises as `derive_digests`, and `NotReproduced` where a byte
    differs.
    """
    out.mkdir(exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    try:
        found = write_again(
            derivation, out, device=device, threads=threads, pythons=pythons, report=report
        )
        check_reproduced(derivation, found)
        for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
            sync_directory(folder)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def write_again(
    derivation: Derivation,
    folder: Path,
    *,
    device: torch.device,
    threads: int | None,
    pythons: Mapping[str, str],
    report: Report,
) -> dict[str, str]:
    """As `make_again` into a directory that is there, comparing nothing with the manifest's
    outputs; the digests of what was written."""
    if isinstance(derivation.manifest, EngineManifest):
        check_now(derivation)
        name, alone = the_file(derivation.manifest)
        written = work_of(derivation, threads, pythons, report).write(folder, name, alone=alone)
        return {record.name: record.sha256 for record in written}
    if isinstance(derivation.manifest, AdapterManifest):
        return _adapter(derivation, folder, device, threads, report)
    writer = _Writer(folder)
    try:
        prepared = derive_weights(
            derivation, writer, folder, device=device, threads=threads, report=report
        )
    finally:
        writer.close()
    return {**writer.found, **prepared, **write_sides(derivation.plan, folder)}


def check_reproduced(derivation: Derivation, found: Mapping[str, str]) -> None:
    """Raises `NotReproduced` for the first output that is not the one that the manifest names."""
    recorded = derivation.recorded
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) == found.get(name):
            continue
        what = f"{name}, derived again, is not the file that the manifest names."
        if name not in found:
            what = f"The manifest names {name}, which the merge does not make."
        elif name not in recorded:
            what = f"The merge makes {name}, which the manifest does not name."
        raise NotReproduced(what, why=_why(derivation))


def derive_weights(
    derivation: Derivation,
    sink: Sink,
    work: Path,
    *,
    device: torch.device,
    threads: int | None,
    report: Report,
) -> dict[str, str]:
    """Derive a checkpoint's weight files into a sink, and check every input by what was read.

    ``work`` is a directory for the preparations, where there are some to keep; their digest is
    given by name.
    """
    plan = derivation.plan
    resources = Resources.of(
        derivation.max_memory, threads, quantised=plan.decodes, combines=plan.combines
    )
    twins = {file.twin.name for file in plan.files if file.twin is not None}
    unread = [shard for shard in plan.base.shards if shard.name not in twins]
    with plan.open(device) as merged:
        prepared = prepare_again(derivation, plan, merged, work, resources.threads)
        counter = counted(sum(part.size for part in (*plan.files, *unread)), report)
        read = derive(merged, plan.files, unread, sink, resources, counter)
    check_inputs(derivation, read)
    return prepared


def work_of(
    derivation: Derivation, threads: int | None, pythons: Mapping[str, str], report: Report
) -> Work:
    """What the engine is told: all that the first time it was told, its names included."""
    manifest = derivation.manifest
    assert isinstance(manifest, EngineManifest) and derivation.asked is not None
    return Work(
        derivation.inputs,
        derivation.plan,
        derivation.asked,
        manifest.origin,
        manifest.merge_key,
        threads,
        pythons,
        report,
    )


def the_file(manifest: EngineManifest) -> tuple[str | None, bool]:
    """The name of the output that holds the model, where that is one file, and whether there is no
    other. Raises `BadInput` where the manifest names none such."""
    suffix = FORMS[manifest.recipe.format].suffix
    if suffix is None:
        return None, False
    names = [r.name for r in manifest.outputs if Path(r.name).suffix == suffix]
    if len(names) != 1:
        raise BadInput(f"The manifest does not name one {suffix} file.")
    return names[0], len(manifest.outputs) == 1


def _adapter(
    derivation: Derivation, folder: Path, device: torch.device, threads: int | None, report: Report
) -> dict[str, str]:
    # It always imports transformers, which takes seconds; most merges can do without.
    from remerge.artefacts.making_adapter_again import write_adapter

    check_now(derivation)
    return write_adapter(derivation, folder, device=device, threads=threads, report=report)


def _why(derivation: Derivation) -> str:
    manifest = derivation.manifest
    made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    if manifest.reproducible == "not proven":
        return f"The engine may give other bytes each time. It was made with {made}."
    if manifest.reproducible == "same-stack":
        return f"Another numerical stack or engine may give other bytes. It was made with {made}."
    return f"It was not made from these inputs, or its manifest was edited. It says: {made}."


class _Digests:
    """A sink that keeps the digests alone."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def put(self, file: OutputFile, offset: int, chunk: memoryview, length: int) -> None:
        pass

    def finish(self, file: OutputFile, digest: str, twin_digest: str | None) -> None:
        self.found[file.name] = digest


class _Writer(_Digests):
    """A sink that writes the files into a directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._files = Files(folder)
        self.close = self._files.close

    def put(self, file: OutputFile, offset: int, chunk: memoryview, length: int) -> None:
        self._files.put(file, offset, chunk, length)

    def finish(self, file: OutputFile, digest: str, twin_digest: str | None) -> None:
        self._files.finish(file)
        super().finish(file, digest, twin_digest)
