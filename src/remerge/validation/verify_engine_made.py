"""Having an engine write an output again, and comparing its digest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from remerge.artefacts import user_index
from remerge.artefacts.digests import file_digest, input_digests
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.making import Report
from remerge.artefacts.making_by_engine import Work, key_of
from remerge.artefacts.manifest import FileRecord
from remerge.engines.forms import FORMS, Asked
from remerge.errors import BadInput, NotReproduced, Unsupported
from remerge.merging.plan import Plan
from remerge.outputs.planning import Inputs
from remerge.validation.findings import VerifyReport, failure

_ONCE = "The engine may give other bytes each time: files were compared with their manifest alone."


def verify_engine_made(
    output: Path,
    manifest: EngineManifest,
    inputs: Inputs,
    plan: Plan,
    threads: int | None,
    pythons: Mapping[str, str],
    *,
    report: Report,
) -> VerifyReport:
    """Derive the file again, from inputs that were found to be those of its manifest.

    Nothing of it is kept: one file is quantised into the void, several are written to a temporary
    directory. What an engine may write differently each time is compared with its manifest alone,
    and the report says so. Raises `UsageError` where the engine's environment is missing.
    """
    folder = output if output.is_dir() else output.parent
    form = FORMS.get(manifest.recipe.format)
    if form is None:
        raise Unsupported(
            f"{output} is a {manifest.recipe.format}, which this remerge cannot make."
        )
    asked = Asked(form, manifest.recipe.form, _files(manifest))
    size = sum(record.size for record in manifest.outputs)
    checked = VerifyReport(
        output, manifest.merge_key, len(manifest.outputs), len(plan.tensors), size, plan.notes
    )
    if manifest.reproducible == "not proven":
        for record in manifest.outputs:
            if file_digest(folder / record.name) != record.sha256:
                raise failure(folder / record.name, "", as_recorded=False)
        return replace(checked, notes=(*plan.notes, _ONCE), derived=False)
    if key_of(plan, input_digests(plan), asked, manifest.origin) != manifest.merge_key:
        raise NotReproduced(
            f"{output} was made with another {manifest.engine}: {manifest.versions}.",
            why="It may give other bytes.",
        )
    key = manifest.merge_key
    work = Work(inputs, plan, asked, manifest.origin, key, threads, pythons, report)
    with tempfile.TemporaryDirectory(prefix="remerge-verify-") as place:
        name = None if form.suffix is None else _weights(output, manifest, form.suffix).name
        found = work.again(Path(place), name)
    for record in manifest.outputs:
        as_recorded = file_digest(folder / record.name) == record.sha256
        # What lies beside one file is not written again.
        derived = found.get(record.name, record.sha256 if form.suffix is not None else None)
        if derived != record.sha256 or not as_recorded:
            raise failure(folder / record.name, "", as_recorded)
    return checked


def _weights(output: Path, manifest: EngineManifest, suffix: str | None) -> FileRecord:
    found = [record for record in manifest.outputs if Path(record.name).suffix == suffix]
    if len(found) != 1:
        raise BadInput(f"The manifest of {output} does not name one {suffix} file.")
    return found[0]


def _files(manifest: EngineManifest) -> dict[str, Path]:
    """Where the inputs besides base and adapters lie now."""
    found: dict[str, Path] = {}
    for option, record in manifest.files.items():
        folder = user_index.location({record.name: record.sha256})
        path = None if folder is None else folder / record.name
        if path is None or not path.is_file() or file_digest(path) != record.sha256:
            raise BadInput(
                f"The file {record.name} of --{option} is not where it was, or was changed.",
                why="It is an input, and its bytes decide the output's.",
                hint="Put it back, or make the output again.",
            )
        found[option] = path
    return found
