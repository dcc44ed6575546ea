"""Making a new adapter out of several: derive its files, write the manifest, publish it whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from remerge.artefacts.adapter_manifest import (
    AdapterManifest,
    FactorRecord,
    is_combined,
    read_adapter_manifest,
)
from remerge.artefacts.card.writing import card_to_keep, write_new_card
from remerge.artefacts.digests import (
    adapter_digests,
    file_digest,
    input_digests,
)
from remerge.artefacts.making import Report, prepare_into, remember, write_side_file
from remerge.artefacts.manifest import MANIFEST, PREPARATIONS, FileRecord, to_bytes
from remerge.artefacts.recording import (
    adapter_records,
    file_record,
    input_name,
    input_record,
    tells_runs,
    write_provenance,
)
from remerge.errors import BadInput
from remerge.merging.adapter_factors import Factors
from remerge.merging.adapter_plan import AdapterPlan, plan_adapter
from remerge.merging.budget import peak_memory
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.combined_adapter import Derived, Told, derive, most_bytes
from remerge.outputs.directory import (
    check_free,
    check_place,
    check_space,
    publish,
    sweep,
    workplace,
    write_durably,
)
from remerge.outputs.peft_adapter import CONFIG, WEIGHTS, AdapterWriter
from remerge.outputs.planning import Inputs
from remerge.version import ALGORITHM, __version__

# Above this share, what the adapter gives is another model than the merge.
_MUCH = 0.01


@dataclass(frozen=True)
class AdapterResult:
    """What the making of an adapter did: the numbers of the closing summary, all measured."""

    output: Path
    manifest: AdapterManifest
    seconds: float
    bytes_written: int
    peak_memory: int
    already_there: bool = False


def make_adapter(
    inputs: Inputs,
    plan: Plan,
    out: Path,
    *,
    max_memory: int,
    threads: int | None,
    device: torch.device,
    started: float,
    overwrite: bool = False,
    report: Report = lambda done, total, tensor: None,
) -> AdapterResult:
    """Write the planned combination to ``out`` as one adapter, or leave ``out`` as it was.

    Raises `BadInput` for what an adapter cannot say, `UsageError` for an output that is in the way
    and for too little memory, `Locked` while another process writes it.
    """
    check_place(out, inputs.paths)
    adapter = plan_adapter(plan)
    read = input_digests(plan)
    done = _already_there(inputs, plan, out, read)
    if done is not None:
        sweep(out)
        return AdapterResult(out, done, time.time() - started, 0, peak_memory(), True)
    check_free(out, overwrite=overwrite)
    check_space(out, 2 * most_bytes(adapter) + plan.bytes_to_write)
    kept = card_to_keep(out)
    count = threads or min(os.cpu_count() or 1, 8)
    state = {"adapter": __version__, "started": started}
    with workplace(out, state) as place, adapter.plan.open(device) as merged:
        found = Factors(adapter, merged, max_memory, count)
        found.check_memory()
        prepare_into(place.work, merged, adapter.plan, count)
        writer = AdapterWriter(place.work)
        try:
            based = inputs.base_reference
            name, told = input_name(based), counting(adapter, report)
            derived = derive(found, writer, name, based.commit, told)
        finally:
            writer.close()
        write_durably(place.work / CONFIG, derived.config)
        files = merged.reader
        if any(files.raw_file(shard.name).changed() for shard in plan.base.shards):
            raise BadInput("The base changed while the adapters were combined.")
        if any(a.changed() for a in plan.adapters) or not _are_in(adapter_digests(plan), read):
            raise BadInput("An adapter changed while it was combined.")
        records = [file_record(place.work / name, name) for name in (CONFIG, WEIGHTS)]
        records += [write_side_file(place.work, side) for side in plan.side_files]
        if (place.work / PREPARATIONS).exists():
            records.append(file_record(place.work / PREPARATIONS, PREPARATIONS))
        manifest = _manifest(inputs, adapter, derived, read, records)
        written = sum(record.size for record in records)
        write_provenance(
            place.work,
            to_bytes(manifest),
            started=started,
            device=device,
            threads=count,
            bytesWritten=written,
        )
        write_durably(place.work / MANIFEST, to_bytes(manifest))
        write_new_card(place.work, manifest, inputs, kept)
        publish(place)
    remember(plan, manifest.base, manifest.adapters)
    return AdapterResult(out, manifest, time.time() - started, written, peak_memory())


def counting(plan: AdapterPlan, report: Report) -> Told:
    """Reports the parameters done, by the number of their values."""
    parameters = [product.parameter for product in plan.products]
    parameters += [whole.parameter for whole in plan.wholes]
    sizes = {p.name: p.merged_view[0] * p.merged_view[1] for p in parameters}
    total, done = sum(sizes.values()), 0

    def told(name: str) -> None:
        nonlocal done
        done += sizes[name]
        report(done, total, name)

    return told


def _are_in(digests: Mapping[str, str], read: Mapping[str, str]) -> bool:
    return all(read.get(name) == digest for name, digest in digests.items())


def _already_there(
    inputs: Inputs, plan: Plan, out: Path, digests: Mapping[str, str]
) -> AdapterManifest | None:
    """The manifest of ``out`` when this very adapter is complete there, every file checked."""
    if not is_combined(out):
        return None
    try:
        manifest = read_adapter_manifest(out)
    except BadInput:
        return None
    if manifest.merge_key != merge_key(plan, digests) or not tells_runs(inputs, manifest.adapters):
        return None
    for record in manifest.outputs:
        path = out / record.name
        if not path.is_file() or file_digest(path) != record.sha256:
            return None
    return manifest


def _manifest(
    inputs: Inputs,
    adapter: AdapterPlan,
    derived: Derived,
    digests: Mapping[str, str],
    outputs: list[FileRecord],
) -> AdapterManifest:
    plan = adapter.plan
    base_files = [
        FileRecord(name=s.name, size=s.size, sha256=digests[f"base/{s.name}"])
        for s in plan.base.shards
    ]
    base_files.append(file_record(plan.base.path / "config.json", "config.json"))
    decomposes = plan.reproducible == "same-stack" or not all(f.exact for f in derived.figures)
    return AdapterManifest(
        merge_key=merge_key(plan, digests),
        plan_id=plan.plan_id,
        recipe=plan.recipe,
        reproducible="same-stack" if decomposes else "everywhere",
        base=input_record(inputs.base_reference, base_files),
        adapters=adapter_records(inputs, plan, digests),
        outputs=tuple(sorted(outputs, key=lambda record: record.name)),
        tensors=tuple(
            FactorRecord(
                name=figures.name,
                shape=figures.shape,
                rank=figures.rank,
                exact=figures.exact,
                relative_error=_short(figures.relative_error),
                norm=_short(figures.norm),
            )
            for figures in derived.figures
        ),
        saved_whole=derived.whole,
        unchanged=derived.unchanged,
        exact=all(figures.exact for figures in derived.figures),
        relative_error=_short(derived.relative_error),
        notes=(*plan.notes, *_notes(adapter, derived)),
        versions={"remerge": __version__, "algorithm": str(ALGORITHM), "torch": torch.__version__},
    )


def _notes(plan: AdapterPlan, derived: Derived) -> Iterable[str]:
    """What the user must know of the adapter that was made."""
    if derived.relative_error > _MUCH:
        yield (
            f"The factors miss {derived.relative_error:.1%} of the combined change (its relative "
            "error). A larger --svd-rank comes nearer; a checkpoint (without --to adapter) holds "
            "all of it."
        )
    resized = [w.parameter.name for w in plan.wholes if w.tensor is not None]
    if any(name in plan.opened.tensors for name in resized):
        yield (
            "The vocabulary has another size than the base's. remerge merge resizes the base by "
            "itself; in PEFT call resize_token_embeddings first."
        )
    names = {figures.name for figures in derived.figures}
    for name, twin in plan.tied.items():
        if twin in names:
            yield (
                f"{twin} and {name} are tied: their change acts in both once the adapter is "
                f"merged, and in {twin} alone while it is served unmerged."
            )


def _short(value: float) -> float:
    """Four digits: more would show on which machine they were measured."""
    return float(f"{value:.4g}")
