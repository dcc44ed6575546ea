"""What a merge writes down of itself: its manifest, and the provenance of one run."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import torch

from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.digests import file_digest, small_digests
from remerge.artefacts.manifest import Manifest
from remerge.artefacts.provenance import Making, provenance_of, to_text
from remerge.artefacts.records import (
    MANIFEST,
    PROVENANCE,
    FileRecord,
    InputRecord,
    RetentionReport,
    RunRecord,
)
from remerge.merging.budget import peak_memory
from remerge.merging.plan import Plan, merge_key
from remerge.merging.retention import Meter, figures
from remerge.outputs.directory import write_durably
from remerge.outputs.planning import Inputs
from remerge.sources.references import Reference
from remerge.version import ALGORITHM, __version__

# Their versions decide nothing that the manifest does not say, and may explain much.
_LIBRARIES = ("huggingface_hub", "numpy", "safetensors", "transformers")


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
            run,
        )
        for number, (adapter, reference, run) in enumerate(
            zip(plan.adapters, inputs.adapter_references, run_records(inputs), strict=True), 1
        )
    )


def run_records(inputs: Inputs) -> tuple[RunRecord | None, ...]:
    """The training runs of the adapters as manifests name them."""
    runs = inputs.runs or (None,) * len(inputs.adapters)
    return tuple(None if run is None else RunRecord(**asdict(run)) for run in runs)


def tells_runs(inputs: Inputs, recorded: Sequence[InputRecord]) -> bool:
    """Whether a manifest has the runs that the user named, if any."""
    return not inputs.runs_given or tuple(one.run for one in recorded) == run_records(inputs)


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


def input_record(
    reference: Reference, files: list[FileRecord], run: RunRecord | None = None
) -> InputRecord:
    """A base or an adapter as manifests name it."""
    return InputRecord(
        name=input_name(reference),
        hub_id=reference.hub_id,
        commit=reference.commit,
        subfolder=reference.subfolder,
        files=tuple(files),
        run=run,
    )


def input_name(reference: Reference) -> str:
    """The Hub's id, else the directory's name as text, whatever bytes it has on disk."""
    return reference.name


def write_provenance(
    work: Path,
    manifest: bytes,
    *,
    started: float,
    device: torch.device,
    threads: int | None,
    chunk: int | None = None,
    name: str = MANIFEST,
    **measured: float | None,
) -> None:
    """Write how this run made what ``manifest`` tells of, which will lie beside it as ``name``."""
    finished = time.time()
    figures = {
        "seconds": round(finished - started, 3),
        "peakMemoryBytes": peak_memory(),
        **measured,
    }
    making = Making(
        invocation=f"urn:uuid:{uuid4()}",
        started=started,
        finished=finished,
        device=str(device),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        threads=threads,
        chunk=chunk,
        measured={key: value for key, value in figures.items() if value is not None},
        versions={"python": platform.python_version(), **_libraries()},
    )
    write_durably(work / PROVENANCE, to_text(provenance_of(manifest, making, name=name)))


def _libraries() -> dict[str, str]:
    found: dict[str, str] = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
