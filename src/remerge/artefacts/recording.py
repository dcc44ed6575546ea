"""What a merge writes down of itself: its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.digests import file_digest, small_digests
from remerge.artefacts.manifest import (
    CARD,
    FileRecord,
    InputRecord,
    Manifest,
    RetentionReport,
)
from remerge.merging.plan import Plan, merge_key
from remerge.merging.retention import Meter, figures
from remerge.outputs.planning import Inputs
from remerge.sources.references import Reference
from remerge.sources.storage import sync_file
from remerge.version import ALGORITHM, __version__


def file_record(path: Path, name: str) -> FileRecord:
    """A file of this path, under the name that it has in its directory."""
    return FileRecord(name=name, size=path.stat().st_size, sha256=file_digest(path))


def manifest_of(
    inputs: Inputs,
    plan: Plan,
    base_digests: Mapping[str, str],
    adapter_digests: Mapping[str, str],
    outputs: list[FileRecord],
    meter: Meter,
    conflicts: ConflictReport | None = None,
) -> Manifest:
    base = plan.base
    digests = {f"base/{name}": digest for name, digest in base_digests.items()}
    digests |= {**adapter_digests, **small_digests(plan)}
    base_files = [
        FileRecord(name=s.name, size=s.size, sha256=base_digests[s.name]) for s in base.shards
    ]
    base_files.append(file_record(base.path / "config.json", "config.json"))
    return Manifest(
        merge_key=merge_key(plan, digests),
        plan_id=plan.plan_id,
        recipe=plan.recipe,
        reproducible="same-stack" if plan.reproducible == "same-stack" else "everywhere",
        base=input_record(inputs.base_reference, base_files),
        adapters=adapter_records(inputs, plan, adapter_digests),
        outputs=tuple(sorted(outputs, key=lambda record: record.name)),
        tensors={
            "touched": len(plan.touched),
            "untouched": plan.untouched,
        },
        formats=dict(plan.formats),
        written=dict(plan.written),
        retention=_retention(plan, meter),
        conflicts=conflicts.shortened() if conflicts is not None else None,
        notes=plan.notes,
        versions={"remerge": __version__, "algorithm": str(ALGORITHM), "torch": torch.__version__},
    )


def adapter_records(
    inputs: Inputs, plan: Plan, digests: Mapping[str, str]
) -> tuple[InputRecord, ...]:
    """The adapters as manifests name them; ``digests`` by ``adapter/1/name``."""
    return tuple(
        input_record(
            reference,
            [
                FileRecord(
                    name=name,
                    size=(adapter.path / name).stat().st_size,
                    sha256=digests[f"adapter/{number}/{name}"],
                )
                for name in adapter.files
            ],
        )
        for number, (adapter, reference) in enumerate(
            zip(plan.adapters, inputs.adapter_references, strict=True), 1
        )
    )


def _retention(plan: Plan, meter: Meter) -> RetentionReport | None:
    if not meter.found:
        return None
    sizes = {name: plan.elements(name) for name in meter.found}
    tensors, overall = figures(meter, sizes)
    return RetentionReport.model_validate(
        {
            "measured": meter.mode,
            "overall": overall.document(),
            "tensors": {name: found.document() for name, found in tensors.items()},
        }
    )


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


def input_record(reference: Reference, files: list[FileRecord]) -> InputRecord:
    """A base or an adapter as manifests name it."""
    return InputRecord(
        name=input_name(reference),
        hub_id=reference.hub_id,
        commit=reference.commit,
        subfolder=reference.subfolder,
        files=tuple(files),
    )


def input_name(reference: Reference) -> str:
    """The Hub's id, else the directory's name as text, whatever bytes it has on disk."""
    name = reference.hub_id or reference.path.resolve().name
    return name.encode("utf-8", "backslashreplace").decode()
