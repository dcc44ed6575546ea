"""Making an output that an engine writes, straight from base and adapters.

The work is done in the engine's environment by the form's module, which opens the same merge, or
reads it as a checkpoint that is written for it; here it is planned, recorded and published.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts import user_index
from remerge.artefacts.card.writing import card_to_keep, write_new_card
from remerge.artefacts.digests import file_digest, input_digests
from remerge.artefacts.engine_manifest import (
    EngineManifest,
    Origin,
    TensorRecord,
    is_engine_made,
    read_engine_manifest,
)
from remerge.artefacts.making import Judge, Report, make, remember, write_side_file
from remerge.artefacts.manifest import (
    CARD,
    MANIFEST,
    PROVENANCE,
    FileRecord,
    read_manifest,
    to_bytes,
)
from remerge.artefacts.recording import (
    adapter_records,
    file_record,
    input_name,
    input_record,
    records_of,
)
from remerge.artefacts.test_result import tests_of
from remerge.engines.calling import Note, call
from remerge.engines.environments import python_of
from remerge.engines.forms import Asked
from remerge.engines.machine import memory
from remerge.errors import BadInput
from remerge.merging.budget import DEFAULT, Resources, peak_memory
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.directory import (
    check_free,
    check_place,
    check_space,
    publish,
    sweep,
    workplace,
    write_durably,
)
from remerge.outputs.planning import Inputs, make_plan
from remerge.outputs.single_file import (
    FILE,
    check_file,
    file_workplace,
    finish_file,
    named,
    publish_file,
)
from remerge.outputs.spellings import both_spellings
from remerge.version import ALGORITHM, __version__


def _unheard(text: str) -> None:
    pass


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


@dataclass(frozen=True)
class Work:
    """Everything an engine needs to know to write an output."""

    inputs: Inputs
    plan: Plan
    asked: Asked
    origin: Origin
    merge_key: str
    threads: int | None
    pythons: Mapping[str, str]
    report: Report
    note: Note = _unheard

    def run(self, work: Path, target: Path | None, beside: Path | None = None) -> dict[str, Any]:
        """Have ``target`` (a file, or a directory to fill) written; with None only the digest of
        a file is taken. What goes with a file comes to ``beside``. What the engine reads lies in
        ``work`` meanwhile."""
        form = self.asked.form
        python = python_of(form.engine, self.pythons)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=work) as folder:
            # Converters read the model's name, size and kind off its directory's name.
            directory = Path(folder) / (self.origin.base.rpartition("/")[2] or "model")
            if form.reads == "checkpoint":
                self._survey(python)
                self._write_checkpoint(directory)
                peak = self._refer(directory, Path(folder) / "reference.npz")
            else:
                peak = 0
                directory.mkdir()
                for side in self.plan.side_files:
                    write_side_file(directory, side)
            request = {
                "base": str(self.inputs.base.path),
                "original": self.inputs.original,
                "adapters": [str(adapter.path) for adapter in self.inputs.adapters],
                "recipe": self.plan.recipe.model_dump(mode="json"),
                "plan_id": self.plan.plan_id,
                "directory": str(directory),
                "reference": str(Path(folder) / "reference.npz"),
                "target": os.devnull if target is None else str(target.absolute()),
                "beside": None if beside is None else str(beside.absolute()),
                "files": {name: str(path.absolute()) for name, path in self.asked.files.items()},
                "threads": self.threads,
                "about": {**self.origin.model_dump(), "merge_key": self.merge_key},
            }
            # What an engine leaves where it stands goes with the folder.
            place = Path(folder)
            told = call(python, form.module, request, self.report, note=self.note, place=place)
            return {**told, "peak_memory": max(told["peak_memory"], peak)}

    def again(self, place: Path, name: str | None) -> dict[str, str]:
        """Write everything a second time, below ``place``; the digests of its files. Of one file,
        called ``name``, nothing is kept."""
        if self.asked.form.suffix is not None:
            assert name is not None
            return {name: self.run(place, None)["sha256"]}
        with tempfile.TemporaryDirectory(prefix=".again-", dir=place) as folder:
            told = self.run(place, Path(folder))
            return {r.name: r.sha256 for r in records_of(Path(folder), told, None, None)}

    def _survey(self, python: Path) -> None:
        """Have the engine refuse what it does not know before anything is written."""
        form = self.asked.form
        if form.survey is not None:
            options = dict(self.asked.options)
            request = {"config": dict(self.plan.config), "options": options}
            call(python, form.survey, request, self.report)

    def _refer(self, directory: Path, target: Path) -> int:
        """Write the merge's logits, by remerge's own environment; the memory that it took."""
        request = {"directory": str(directory), "target": str(target)}
        python = Path(sys.executable)
        return call(python, "remerge.engines.reference", request, self.report)["peak_memory"]

    def _write_checkpoint(self, directory: Path) -> None:
        """The merge as a checkpoint, for an engine that loads one: in its transformers' words."""
        recipe = self.plan.recipe.model_copy(update={"format": "safetensors", "form": {}})
        plan = make_plan(self.inputs, recipe, DEFAULT)
        resources = Resources.of(
            DEFAULT, self.threads, quantised=plan.decodes, combines=plan.combines
        )
        cpu = torch.device("cpu")
        make(self.inputs, plan, directory, resources, device=cpu, started=time.time())
        # Beside the output's own files it would be taken for what the engine made.
        for name in (MANIFEST, PROVENANCE, CARD):
            (directory / name).unlink()
        path = directory / "config.json"
        path.write_text(json.dumps(both_spellings(json.loads(path.read_bytes())), indent=2) + "\n")


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
    note: Note = _unheard,
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
    done = _already_there(out, key)
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
        told = work.run(place.work, target, None if single else place.work)
        if any(a.changed() for a in plan.adapters) or input_digests(plan) != read:
            raise BadInput("An input changed while it was merged.")
        records = records_of(place.work, told, name, out.name if single else None)
        proof = _proof(work, place.work, records) if prove else None
        manifest = _manifest(work, read, records, told, proof)
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
    written = sum(record.size for record in records)
    peak = max(peak_memory(), told["peak_memory"])
    return EngineResult(out, manifest, time.time() - started, written, peak)


def _proof(work: Work, place: Path, records: Sequence[FileRecord]) -> tuple[bool, str]:
    """Whether a second run gives the same bytes, and a sentence that says so."""
    suffix = work.asked.form.suffix
    compared = [r for r in records if suffix is None or Path(r.name).suffix == suffix]
    # What the user should know, the first run has said.
    again = replace(work, note=_unheard).again(place, compared[0].name)
    differing = [record.name for record in compared if again.get(record.name) != record.sha256]
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


def key_of(plan: Plan, digests: Mapping[str, str], asked: Asked, origin: Origin) -> str:
    """The merge key of what an engine writes: the engine is an input as well, and so is what the
    output says of its origin."""
    engine = asked.form.engine
    words = {f"engine/{engine.name}": engine.identity, "origin": origin.model_dump_json()}
    return merge_key(plan, {**digests, **words})


def _name(out: Path, asked: Asked) -> str | None:
    """The one file's name in the directory; None for a form of several files."""
    if asked.form.suffix is None:
        return None
    return asked.form.file_name(out.resolve().name, asked.options)


def _size(plan: Plan, asked: Asked) -> int:
    """Bytes on disk, about: some tensors get other types, and the disk itself says where it is too
    little."""
    needed = int(_weights(plan) * asked.form.bytes_per_weight(asked.options))
    return needed + (plan.bytes_to_write if asked.form.reads == "checkpoint" else 0)


def _check_memory(plan: Plan, asked: Asked) -> None:
    """Refuse before the first write a model that an engine could not hold, in float32."""
    if asked.form.reads != "checkpoint":
        return
    needed = 4 * _weights(plan)
    there = memory()
    if needed > there:
        raise BadInput(
            f"--to {asked.form.name} needs {needed / 1e9:.1f} GB of memory, and this machine has "
            f"{there / 1e9:.1f} GB.",
            why=f"{asked.form.engine.name} holds the whole model in memory.",
            hint="Run it on a larger machine, or write a checkpoint or a GGUF file, which need "
            "little memory.",
        )


def _weights(plan: Plan) -> int:
    return sum(math.prod(tensor.shape) for tensor in plan.tensors.values())


def _already_there(out: Path, key: str) -> EngineManifest | None:
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
    return manifest if whole and manifest.merge_key == key else None


def _manifest(
    work: Work,
    digests: Mapping[str, str],
    records: Sequence[FileRecord],
    told: Mapping[str, Any],
    proof: tuple[bool, str] | None,
) -> EngineManifest:
    plan, inputs, asked = work.plan, work.inputs, work.asked
    proven, said = (asked.form.rederivable, ()) if proof is None else (proof[0], (proof[1],))
    base_files = [
        FileRecord(name=s.name, size=s.size, sha256=digests[f"base/{s.name}"])
        for s in plan.base.shards
    ]
    base_files.append(file_record(plan.base.path / "config.json", "config.json"))
    weights = _weights(plan)
    return EngineManifest(
        merge_key=work.merge_key,
        plan_id=plan.plan_id,
        recipe=plan.recipe,
        engine=asked.form.engine.name,
        origin=work.origin,
        reproducible="same-stack" if proven else "not proven",
        base=input_record(inputs.base_reference, base_files),
        adapters=adapter_records(inputs, plan, digests),
        files={option: file_record(path, path.name) for option, path in asked.files.items()},
        outputs=tuple(records),
        tensors=tuple(
            TensorRecord(name=name, shape=tuple(shape), type=kind)
            for name, shape, kind in told.get("tensors", ())
        ),
        measured=told.get("measured", {}),
        bits_per_weight=round(8 * sum(record.size for record in records) / max(weights, 1), 3),
        weight_error=told.get("loss"),
        notes=(*plan.notes, *told["notes"], *said),
        versions={
            "remerge": __version__,
            "algorithm": str(ALGORITHM),
            "torch": torch.__version__,
            **told["versions"],
        },
    )
