"""What is written down of an output that an engine wrote: its files, its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts.engine_manifest import EngineManifest, Origin, TensorRecord
from remerge.artefacts.recording import adapter_records, file_record, input_record
from remerge.artefacts.records import CARD, FileRecord
from remerge.engines.forms import Asked
from remerge.merging.plan import Plan
from remerge.outputs.planning import Inputs
from remerge.sources.storage import sync_file
from remerge.version import ALGORITHM, __version__


def weights_in(plan: Plan) -> int:
    """How many weights the merge has."""
    return sum(math.prod(tensor.shape) for tensor in plan.tensors.values())


def records_of(
    work: Path, told: Mapping[str, Any], name: str | None, alone: str | None
) -> list[FileRecord]:
    """The output's files with sizes and digests: as the engine told them while it wrote, or read
    again. ``name`` is the file that it told of, ``alone`` what that one will be called."""
    found: list[FileRecord] = []
    for path in sorted(work.rglob("*")):
        at = path.relative_to(work).as_posix()
        if at == CARD:
            # An engine's own card knows nothing of base and adapters.
            path.unlink()
        elif at == name:
            found.append(FileRecord(name=alone or at, size=told["size"], sha256=told["sha256"]))
        elif path.is_file() and not at.startswith(".") and alone is None:
            sync_file(path)
            found.append(file_record(path, at))
    return found


def engine_manifest_of(
    inputs: Inputs,
    plan: Plan,
    asked: Asked,
    origin: Origin,
    merge_key: str,
    digests: Mapping[str, str],
    records: Sequence[FileRecord],
    told: Mapping[str, Any],
    proof: tuple[bool, str] | None,
) -> EngineManifest:
    """The manifest of what an engine ``told`` that it made; ``proof`` is what a second run
    showed."""
    proven, said = (asked.form.rederivable, ()) if proof is None else (proof[0], (proof[1],))
    base_files = [
        FileRecord(name=s.name, size=s.size, sha256=digests[f"base/{s.name}"])
        for s in plan.base.shards
    ]
    base_files.append(file_record(plan.base.path / "config.json", "config.json"))
    weights = weights_in(plan)
    return EngineManifest(
        merge_key=merge_key,
        plan_id=plan.plan_id,
        recipe=plan.recipe,
        engine=asked.form.engine.name,
        origin=origin,
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
