"""Deriving a GGUF file again and comparing its digest; the second one is gone when that is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

from remerge.artefacts.digests import file_digest, input_digests
from remerge.artefacts.gguf_manifest import GgufManifest
from remerge.artefacts.making import Report
from remerge.artefacts.making_gguf import About, convert, key_of
from remerge.errors import NotReproduced
from remerge.merging.plan import Plan
from remerge.outputs.planning import Inputs
from remerge.validation.findings import VerifyReport, failure


def verify_gguf(
    output: Path,
    manifest: GgufManifest,
    inputs: Inputs,
    plan: Plan,
    threads: int | None,
    *,
    report: Report,
) -> VerifyReport:
    """Derive the file again, from inputs that were found to be those of its manifest.

    Nothing of it is kept: it is quantised into the void. Raises `UsageError` where llama.cpp's
    environment is missing.
    """
    (record,) = manifest.outputs
    # The names that the inputs had then: they may lie elsewhere now.
    adapters = tuple(record.name for record in manifest.adapters)
    if key_of(plan, input_digests(plan), manifest.base.name, adapters) != manifest.merge_key:
        raise NotReproduced(
            f"{output} was made with another llama.cpp: {manifest.versions}.",
            why="Its quantisers may give other bytes.",
        )
    with tempfile.TemporaryDirectory(prefix="remerge-verify-") as folder:
        work = Path(folder)
        about = About(manifest.base.name, adapters, manifest.merge_key)
        told = convert(inputs, plan, about, work, None, threads, {}, report)
    as_recorded = file_digest(output / record.name) == record.sha256
    if told["sha256"] != record.sha256 or not as_recorded:
        raise failure(output / record.name, "", as_recorded)
    return VerifyReport(
        output, manifest.merge_key, 1, len(manifest.tensors), record.size, plan.notes
    )
