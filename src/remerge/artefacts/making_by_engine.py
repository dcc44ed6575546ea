"""Making an output that an engine writes, straight from base and adapters.

The work is done in the engine's environment by the form's module, which opens the same merge, or
reads it as a checkpoint that is written for it; here it is planned, recorded and published.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from remerge.artefacts import user_index
from remerge.artefacts.card.writing import card_to_keep, write_new_card
from remerge.artefacts.digests import file_digest, input_digests
from remerge.artefacts.engine_manifest import (
    EngineManifest,
    Origin,
    is_engine_made,
    read_engine_manifest,
)
from remerge.artefacts.engine_recording import engine_manifest_of, records_of, weights_in
from remerge.artefacts.engine_work import Work, key_of, unheard
from remerge.artefacts.making import Judge, Report, remember
from remerge.artefacts.manifest import MANIFEST, FileRecord, read_manifest, to_bytes
from remerge.artefacts.recording import input_name, tells_runs, write_provenance
from remerge.artefacts.test_result import tests_of
from remerge.engines.calling import Note
from remerge.engines.environments import python_of
from remerge.engines.forms import Asked
from remerge.engines.machine import memory
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory
from remerge.merging.plan import Plan
from remerge.outputs.directory import (
    check_free,
    check_place,
    check_space,
    publish,
    sweep,
    workplace,
    write_durably,
)
from remerge.outputs.planning import Inputs
from remerge.outputs.single_file import (
    FILE,
    check_file,
    file_workplace,
    finish_file,
    manifest_beside,
    named,
    publish_file,
)
from remerge.version import __version__


@dataclass(frozen=True)
class EngineResult:
    """What making an output with an engine did: the numbers of the closing summary, measured."""

    output: Path
    manifest: EngineManifest
    seconds: float
    bytes_written: int
    peak_memory: int
    already_there: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files made."""
        folder = self.output if self.output.is_dir() else self.output.parent
        return tuple(folder / record.name for record in self.manifest.outputs)


def make_by_engine(
    inputs: Inputs,
    plan: Plan,
    asked: Asked,
    out: Path,
    *,
    threads: int | None,
    pythons: Mapping[str, str],
    started: float,
    overwrite: bool = False,
    prove: bool = False,
    report: Report = lambda done, total, tensor: None,
    note: Note = unheard,
    judge: Judge | None = None,
) -> EngineResult:
    """Write the planned merge to ``out`` in the form that was asked for, or leave ``out`` as it
    was. A name with the form's suffix is that of the one file; any other is a directory's.

    Raises `UsageError` for an output that is in the way and where the engine's environment is
    missing, `Unsupported` for a model or tokenizer that the engine does not know, `NotReproduced`
    where the engine computes something else than the merge. With ``prove`` it is written twice, and
    the manifest says whether both are the same. ``note`` hears what the user should
    know before it ends. What ``judge`` refuses is not published.
    """
    form = asked.form
    single = form.suffix is not None and out.suffix == form.suffix
    check_place(out, inputs.paths, is_file=single)
    python_of(form.engine, pythons)
    read = input_digests(plan)
    origin = origin_of(inputs)
    key = key_of(plan, read, asked, origin)
    if single:
        finish_file(out)
    done = _already_there(inputs, out, key)
    if done is not None:
        sweep(out)
        if judge is not None:
            judge(out)
        return EngineResult(out, done, time.time() - started, 0, peak_memory(), True)
    if single:
        check_file(out, overwrite=overwrite)
    else:
        check_free(out, overwrite=overwrite)
    check_space(out, _size(plan, asked))
    _check_memory(plan, asked)
    kept = None if single else card_to_keep(out)
    work = Work(inputs, plan, asked, origin, key, threads, pythons, report, note)
    state = {"engine": form.engine.name, "version": __version__, "started": started}
    with (file_workplace if single else workplace)(out, state) as place:
        name = FILE if single else _name(out, asked)
        target = place.work if name is None else place.work / name
        told = work.run(place.work, target, None if single else place.work, name)
        if any(a.changed() for a in plan.adapters) or input_digests(plan) != read:
            raise BadInput("An input changed while it was merged.")
        records = records_of(place.work, told, name, out.name if single else None)
        proof = _proof(work, place.work, records) if prove else None
        manifest = engine_manifest_of(inputs, plan, asked, origin, key, read, records, told, proof)
        written = sum(record.size for record in records)
        peak = max(peak_memory(), told["peak_memory"])
        write_provenance(
            place.work,
            to_bytes(manifest),
            started=started,
            device=torch.device("cpu"),
            threads=threads,
            name=manifest_beside(out).name if single else MANIFEST,
            peakMemoryBytes=peak,
            bytesWritten=written,
        )
        write_durably(place.work / MANIFEST, to_bytes(manifest))
        results: dict[str, bytes] = {}
        if judge is not None and not single:
            judge(place.work)
        elif judge is not None:
            with named(place) as file:
                judge(file)
                results = {p.name: p.read_bytes() for p in tests_of(file).glob("*.json")}
        if not single:
            write_new_card(place.work, manifest, inputs, kept)
        (publish_file if single else publish)(place)
        for name, content in results.items():
            tests_of(out).mkdir(exist_ok=True)
            write_durably(tests_of(out) / name, content)
    remember(plan, manifest.base, manifest.adapters)
    for option, path in asked.files.items():
        record = manifest.files[option]
        user_index.remember_location({record.name: record.sha256}, path.parent)
    return EngineResult(out, manifest, time.time() - started, written, peak)


def _proof(work: Work, place: Path, records: Sequence[FileRecord]) -> tuple[bool, str]:
    """Whether a second run gives the same bytes, and a sentence that says so."""
    suffix = work.asked.form.suffix
    one = next(
        (r.name for r in records if suffix is not None and Path(r.name).suffix == suffix), None
    )
    # What the user should know, the first run has said.
    again = replace(work, note=unheard).again(place, one, alone=len(records) == 1)
    differing = [record.name for record in records if again.get(record.name) != record.sha256]
    if not differing:
        return True, "Written twice: both times the same bytes."
    return False, f"Written twice: {', '.join(differing)} came out differently."


def origin_of(inputs: Inputs) -> Origin:
    """What the output says of its origin."""
    adapters = tuple(input_name(reference) for reference in inputs.adapter_references)
    reference = inputs.base_reference
    if (reference.path / MANIFEST).is_file():
        with suppress(BadInput):
            made = read_manifest(reference.path)
            before = tuple(record.name for record in made.adapters)
            return Origin(
                base=made.base.name, base_id=made.base.hub_id, adapters=(*before, *adapters)
            )
    return Origin(base=input_name(reference), base_id=reference.hub_id, adapters=adapters)


def _name(out: Path, asked: Asked) -> str | None:
    """The one file's name in the directory; None for a form of several files."""
    if asked.form.suffix is None:
        return None
    return asked.form.file_name(out.resolve().name, asked.options)


def _size(plan: Plan, asked: Asked) -> int:
    """Bytes on disk, about: some tensors get other types, and the disk itself says where it is too
    little."""
    needed = int(weights_in(plan) * asked.form.bytes_per_weight(asked.options))
    return needed + (plan.bytes_to_write if asked.form.reads == "checkpoint" else 0)


def _check_memory(plan: Plan, asked: Asked) -> None:
    """Refuse before the first write a model that an engine could not hold, in float32."""
    if asked.form.reads != "checkpoint":
        return
    needed = 4 * weights_in(plan)
    there = memory()
    if needed > there:
        raise BadInput(
            f"--to {asked.form.name} needs {needed / 1e9:.1f} GB of memory, and this machine has "
            f"{there / 1e9:.1f} GB.",
            why=f"{asked.form.engine.name} holds the whole model in memory.",
            hint="Run it on a larger machine, or write a checkpoint or a GGUF file, which need "
            "little memory.",
        )


def _already_there(inputs: Inputs, out: Path, key: str) -> EngineManifest | None:
    """The manifest of ``out`` when this very output is complete there, its digests checked."""
    if not is_engine_made(out):
        return None
    try:
        manifest = read_engine_manifest(out)
    except BadInput:
        return None
    folder = out if out.is_dir() else out.parent
    whole = all(
        (folder / record.name).is_file() and file_digest(folder / record.name) == record.sha256
        for record in manifest.outputs
    )
    same = manifest.merge_key == key and tells_runs(inputs, manifest.adapters)
    return manifest if whole and same else None
