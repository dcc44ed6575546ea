"""Deriving a new adapter a second time."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from remerge.artefacts.digests import file_digest
from remerge.artefacts.making import Report
from remerge.artefacts.making_adapter import counting
from remerge.artefacts.preparing_again import prepare_again, write_sides
from remerge.artefacts.rederiving import Derivation
from remerge.merging.adapter_factors import Factors
from remerge.merging.adapter_plan import plan_adapter
from remerge.outputs.combined_adapter import Derived, Sink, derive
from remerge.outputs.directory import write_durably
from remerge.outputs.peft_adapter import CONFIG, WEIGHTS, AdapterWriter


def derive_adapter(
    derivation: Derivation,
    sink: Sink,
    work: Path,
    *,
    device: torch.device,
    threads: int | None,
    report: Report,
) -> tuple[Derived, dict[str, str]]:
    """Derive a new adapter into a sink, from inputs that were checked; with the digest of the
    preparations by name."""
    adapter = plan_adapter(derivation.plan)
    count = threads or min(os.cpu_count() or 1, 8)
    based = derivation.manifest.base
    with adapter.plan.open(device) as merged:
        found = Factors(adapter, merged, derivation.max_memory, count)
        found.check_memory()
        prepared = prepare_again(derivation, adapter.plan, merged, work, count)
        told = counting(adapter, report)
        return derive(found, sink, based.name, based.commit, told), prepared


def write_adapter(
    derivation: Derivation,
    folder: Path,
    *,
    device: torch.device,
    threads: int | None,
    report: Report,
) -> dict[str, str]:
    """Write the new adapter into a directory, from inputs that were checked; its files' digests."""
    writer = AdapterWriter(folder)
    try:
        derived, prepared = derive_adapter(
            derivation, writer, folder, device=device, threads=threads, report=report
        )
    finally:
        writer.close()
    write_durably(folder / CONFIG, derived.config)
    own = {name: file_digest(folder / name) for name in (CONFIG, WEIGHTS)}
    return {**own, **prepared, **write_sides(derivation.plan, folder)}
