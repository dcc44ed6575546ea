"""Extracting an adapter: compare two checkpoints, and write what a LoRA can say of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from remerge.artefacts.card.writing import card_to_keep, write_extracted_card
from remerge.artefacts.digests import weight_digests
from remerge.artefacts.extraction_findings import (
    extraction_notes,
    nothing_found,
    overall,
    tensor_record,
)
from remerge.artefacts.extraction_manifest import (
    ExtractionManifest,
    ExtractionOptions,
    TensorRecord,
)
from remerge.artefacts.recording import file_record, input_name, input_record, write_provenance
from remerge.artefacts.records import MANIFEST, FileRecord, InputRecord, to_bytes
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory
from remerge.merging.comparing import Comparison, Outcome
from remerge.merging.extraction import Wanted
from remerge.merging.extraction_plan import (
    ExtractionPlan,
    Parameter,
    open_model,
    plan_extraction,
)
from remerge.merging.extraction_whole import Whole, kept_whole
from remerge.outputs.directory import (
    Workplace,
    check_free,
    check_place,
    check_space,
    copy_durably,
    publish,
    workplace,
    write_durably,
)
from remerge.outputs.peft_adapter import (
    CONFIG,
    WEIGHTS,
    AdapterWriter,
    adapter_config,
    factors,
    keys_of,
    task_of,
)
from remerge.outputs.side_files import tokenizer_files
from remerge.sources.checkpoint import Checkpoint, open_checkpoint
from remerge.sources.dtypes import itemsize, torch_dtype
from remerge.sources.reading import Reader
from remerge.sources.references import Reference
from remerge.version import __version__

# Told, from any thread: bytes done, bytes in all, the tensor at hand.
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ExtractionResult:
    """What an extraction did: the numbers of the closing summary, all measured."""

    output: Path
    manifest: ExtractionManifest
    seconds: float
    bytes_compared: int
    bytes_written: int
    peak_memory: int


def extract(
    base: Reference,
    merged: Reference,
    out: Path,
    options: ExtractionOptions,
    *,
    max_memory: int,
    threads: int | None,
    started: float,
    overwrite: bool = False,
    report: Report = lambda done, total, tensor: None,
) -> ExtractionResult:
    """Write the adapter that leads from ``base`` to ``merged``, or leave ``out`` as it was.

    Raises `BadInput` where the two are not of one architecture, do not differ, hold values that
    are not finite, or (``strict``) differ in what factors cannot say; `UsageError` for an output
    that is in the way and for too little memory.
    """
    check_place(out, [base.path, merged.path])
    check_free(out, overwrite=overwrite)
    opened = [open_checkpoint(reference.path.absolute()) for reference in (base, merged)]
    plan = plan_extraction(*map(open_model, opened))
    readers = [Reader(checkpoint) for checkpoint in opened]
    wanted = Wanted(options.rank, options.energy)
    count = threads or min(os.cpu_count() or 1, 8)
    comparison = Comparison(plan, readers[0], readers[1], wanted, max_memory, count)
    comparison.check_memory()
    check_space(out, 2 * _most_bytes(plan, options))
    kept = card_to_keep(out)
    state = {"extraction": __version__, "started": started}
    try:
        digests = weight_digests([s.path for c in opened for s in c.shards])
        with workplace(out, state) as place:
            manifest = _write(place, comparison, (base, merged), options, digests, report)
            if any(
                reader.raw_file(s.name).changed() for reader in readers for s in reader.base.shards
            ):
                raise BadInput("The base or the merged model changed while they were compared.")
            compared = sum(shard.size for checkpoint in opened for shard in checkpoint.shards)
            written = sum(record.size for record in manifest.outputs)
            write_provenance(
                place.work,
                to_bytes(manifest),
                started=started,
                device=torch.device("cpu"),
                threads=count,
                bytesRead=compared,
                bytesWritten=written,
            )
            write_durably(place.work / MANIFEST, to_bytes(manifest))
            write_extracted_card(place.work, manifest, base.path, merged.path, kept)
            publish(place)
    finally:
        for reader in readers:
            reader.close()
    return ExtractionResult(
        out,
        manifest,
        time.time() - started,
        compared,
        written,
        peak_memory(),
    )


def _write(
    place: Workplace,
    comparison: Comparison,
    references: tuple[Reference, Reference],
    options: ExtractionOptions,
    digests: Mapping[Path, str],
    report: Report,
) -> ExtractionManifest:
    plan = comparison.plan
    told = _Told(plan, report)
    plain = [p for p in plan.parameters if p.form == "whole"]
    outcomes = list(comparison.outcomes(plain, told))
    changed = [outcome.parameter for outcome in outcomes if outcome.changed]
    whole = kept_whole(comparison, changed, save=options.modules_to_save, strict=options.strict)
    found: list[Outcome] = []
    records: list[TensorRecord] = []
    writer = AdapterWriter(place.work)
    try:
        able = [p for p in plan.parameters if p.form != "whole"]
        unchanged = sum(not outcome.changed for outcome in outcomes)
        for outcome in comparison.outcomes(able, told):
            if not outcome.changed:
                unchanged += 1
                continue
            for part, tensor in zip("AB", _factors(outcome, options), strict=True):
                writer.add(f"{outcome.parameter.name}|{part}", tensor)
            records.append(tensor_record(outcome))
            found.append(replace(outcome, fits=()))
        factored = [outcome.parameter for outcome in found]
        if not factored and not whole.parameters:
            raise nothing_found(whole)
        for parameter in whole.parameters:
            dtype, blocks = comparison.values(parameter)
            writer.add_blocks(parameter.name, dtype, parameter.merged_shape, blocks)
        keys = keys_of(factored, whole.parameters)
        writer.finish(keys)
    finally:
        writer.close()
    config = adapter_config(
        {record.name: record.rank for record in records},
        factored,
        whole.modules,
        plan.modules,
        plan.names,
        _stated(plan, references[0], whole),
        has_experts=any(parameter.form == "stack" for parameter in plan.parameters),
    )
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_durably(place.work / CONFIG, text.encode())
    grown = any(parameter.resized for parameter in whole.parameters)
    tokenizer = _carried_tokenizer(place, comparison.merged.base) if grown else ()
    files = (CONFIG, WEIGHTS, *tokenizer)
    return ExtractionManifest(
        options=options,
        base=_input(references[0], comparison.base.base, digests),
        merged=_input(references[1], comparison.merged.base, digests),
        outputs=tuple(file_record(place.work / name, name) for name in files),
        tensors=tuple(records),
        saved_whole=tuple(parameter.name for parameter in whole.parameters),
        left_out=whole.left_out,
        unchanged=unchanged,
        explained_energy=overall(records),
        notes=(*extraction_notes(plan, factored, records), *whole.notes),
        versions={"remerge": __version__, "torch": torch.__version__},
    )


class _Told:
    """Bytes compared so far, reported with the total."""

    def __init__(self, plan: ExtractionPlan, report: Report) -> None:
        self._sizes = {p.name: _stored_bytes(plan, p) for p in plan.parameters}
        self._total = sum(self._sizes.values())
        self._done = 0
        self._report = report

    def __call__(self, parameter: Parameter) -> None:
        self._done += self._sizes[parameter.name]
        self._report(self._done, self._total, parameter.name)


def _stored_bytes(plan: ExtractionPlan, parameter: Parameter) -> int:
    sides = ((plan.base, parameter.base), (plan.merged, parameter.merged))
    return sum(
        len(region.rows) * len(region.cols) * itemsize(side.tensors[region.tensor].dtype)
        for side, regions in sides
        for region in regions
    )


def _most_bytes(plan: ExtractionPlan, options: ExtractionOptions) -> int:
    """The size of the adapter if every parameter changed that can have factors."""
    total = 0
    for parameter in plan.parameters:
        if parameter.form != "whole":
            height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
            rank = min(options.rank, height, width)
            total += parameter.matrices * rank * (height + width) * itemsize(options.dtype)
    return total


def _factors(outcome: Outcome, options: ExtractionOptions) -> tuple[torch.Tensor, torch.Tensor]:
    pair = factors(outcome.parameter, outcome.fits, torch_dtype(options.dtype))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in pair):
        raise BadInput(
            f"The factors of {outcome.parameter.name} overflow {options.dtype}.",
            hint="Use --dtype float32.",
        )
    return pair


def _stated(plan: ExtractionPlan, base: Reference, whole: Whole) -> dict[str, object]:
    biases = any(name.endswith(".bias") for name in whole.loose)
    model_type = str(plan.base.checkpoint.config.get("model_type"))
    return {
        "base_model_name_or_path": input_name(base),
        "revision": base.commit,
        "bias": "all" if biases else "none",
        **task_of(model_type, type(plan.base.model)),
    }


def _carried_tokenizer(place: Workplace, merged: Checkpoint) -> tuple[str, ...]:
    """Copy the tokenizer that knows the new tokens: a merge takes it from the adapter."""
    names = tokenizer_files(merged)
    for name in names:
        (place.work / name).parent.mkdir(exist_ok=True)
        copy_durably(merged.path / name, place.work / name)
    return names


def _input(
    reference: Reference, checkpoint: Checkpoint, digests: Mapping[Path, str]
) -> InputRecord:
    files = [
        FileRecord(name=s.name, size=s.size, sha256=digests[s.path]) for s in checkpoint.shards
    ]
    files.append(file_record(checkpoint.path / "config.json", "config.json"))
    return input_record(reference, files)
