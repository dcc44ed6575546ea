"""Having an engine write an output again, and comparing its digest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.making import Report
from remerge.artefacts.making_again import the_file, work_of
from remerge.artefacts.origins import shard_digests
from remerge.artefacts.rederiving import Derivation, check_inputs
from remerge.validation.findings import VerifyReport, failure

_ONCE = "The engine may give other bytes each time: files were compared with their manifest alone."


def verify_engine_made(
    output: Path,
    manifest: EngineManifest,
    derivation: Derivation,
    threads: int | None,
    pythons: Mapping[str, str],
    *,
    report: Report,
) -> VerifyReport:
    """Derive the files again and compare their digests.

    Nothing of it is kept: one file is quantised into the void, several are written to a temporary
    directory. What an engine may write differently each time is compared with its manifest alone,
    and the report says so. Raises `UsageError` where the engine's environment is missing.
    """
    folder = output if output.is_dir() else output.parent
    plan = derivation.plan
    size = sum(record.size for record in manifest.outputs)
    checked = VerifyReport(
        output, manifest.merge_key, len(manifest.outputs), len(plan.tensors), size, plan.notes
    )
    if manifest.reproducible == "not proven":
        for record in manifest.outputs:
            if file_digest(folder / record.name) != record.sha256:
                raise failure(folder / record.name, "", as_recorded=False)
        return replace(checked, notes=(*plan.notes, _ONCE), derived=False)
    check_inputs(derivation, shard_digests(plan))
    name, alone = the_file(manifest)
    with tempfile.TemporaryDirectory(prefix="remerge-verify-") as place:
        work = work_of(derivation, threads, pythons, report)
        found = work.again(Path(place), name, alone=alone)
    for record in manifest.outputs:
        as_recorded = file_digest(folder / record.name) == record.sha256
        if found.get(record.name) != record.sha256 or not as_recorded:
            raise failure(folder / record.name, "", as_recorded)
    return checked
