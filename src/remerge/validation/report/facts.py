"""Everything that a report tells, read from what lies beside the output: nothing is computed but
how far several adapters are in each other's way, where these are at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from remerge.artefacts import user_index
from remerge.artefacts.adapter_manifest import is_combined
from remerge.artefacts.conflict_report import ConflictReport
from remerge.artefacts.conflicting import find_conflicts
from remerge.artefacts.digests import file_digest
from remerge.artefacts.engine_manifest import (
    EngineManifest,
    is_engine_made,
    manifest_path,
    read_engine_manifest,
)
from remerge.artefacts.manifest import InputRecord, Manifest, read_manifest
from remerge.artefacts.provenance import measured_of
from remerge.artefacts.reproducing import command_of
from remerge.artefacts.test_result import Figures, Statement, read_statements
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.outputs.planning import open_inputs
from remerge.validation.formats import FormatTable
from remerge.validation.report.grid import (
    Grid,
    grid_of,
    meetings_of,
    of_comparison,
    of_manifest,
)

_FULL = "all elements, measured while it was merged"
_SAMPLE = "a sample of every tensor, measured while it was merged; norms are estimates"


@dataclass(frozen=True)
class Result:
    """One comparison. ``same_bytes`` is False where it judged files with other digests than the
    manifest has; ``judged_by`` are the files that held prompts and questions."""

    figures: Figures
    same_bytes: bool
    judged_by: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> bool:
        """Whether these very bytes passed."""
        return self.figures.verdict == "passed" and self.same_bytes


@dataclass(frozen=True)
class Facts:
    """What is known of an output: its ``name``, the ``manifest`` (None for what remerge did not
    make, and only compared), how the merge went, all comparisons with the newest last, the grid of
    its tensors, and tables of formats by the names of their files."""

    name: str
    manifest: Manifest | EngineManifest | None
    command: str | None
    provenance: Mapping[str, Any]
    results: tuple[Result, ...]
    grid: Grid | None
    conflicts: ConflictReport | None
    formats: tuple[tuple[str, FormatTable], ...]

    @property
    def newest(self) -> Result | None:
        return self.results[-1] if self.results else None

    @property
    def nbytes(self) -> int | None:
        """Bytes of all of its files, by the manifest."""
        if self.manifest is None:
            return None
        return sum(record.size for record in self.manifest.outputs)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return () if self.manifest is None else names_of(self.manifest.adapters)


def gather(output: Path, formats: Sequence[Path]) -> Facts:
    """Read everything that lies beside ``output``.

    Raises `BadInput` where that is nothing that remerge made or compared, `UsageError` for a file
    of formats that is none.
    """
    manifest = _manifest(output)
    results = tuple(_result(one, manifest) for one in read_statements(output))
    if manifest is None and not results:
        raise BadInput(
            f"{output} has neither a manifest nor a comparison to report on.",
            why="It was not made by remerge, or its making never ended.",
            hint=f"Compare it first: remerge compare BASE ADAPTER {output}.",
        )
    conflicts, is_whole = _conflicts(manifest)
    return Facts(
        output.resolve().name.encode("utf-8", "backslashreplace").decode(),
        manifest,
        None if manifest is None else _command(manifest, output),
        measured_of(output),
        results,
        _grid(manifest, results, conflicts, is_whole=is_whole),
        conflicts,
        tuple((path.name, read_formats(path)) for path in formats),
    )


def names_of(records: Sequence[InputRecord]) -> tuple[str, ...]:
    """Names of adapters, numbered where two have the same."""
    names = [record.name for record in records]
    return tuple(
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    )


def _manifest(output: Path) -> Manifest | EngineManifest | None:
    if not output.exists():
        raise BadInput(f"There is nothing at {output}.", hint="Name what remerge merged.")
    if is_engine_made(output):
        return read_engine_manifest(output)
    if not manifest_path(output).is_file():
        return None
    if is_combined(output):
        raise BadInput(
            f"{output} is an adapter that combines others, not a model.",
            hint=f"Merge it first: remerge merge BASE {output} -o OUT.",
        )
    return read_manifest(output)


def _command(manifest: Manifest | EngineManifest, output: Path) -> str:
    name = output.resolve().name
    return command_of(manifest.recipe, manifest.base, manifest.adapters, name)


def _result(statement: Statement, manifest: Manifest | EngineManifest | None) -> Result:
    made = {} if manifest is None else {r.name: r.sha256 for r in manifest.outputs}
    same = all(made.get(s.name, s.digest.sha256) == s.digest.sha256 for s in statement.subject)
    judged_by = tuple((s.name, s.digest.sha256) for s in statement.predicate.configuration)
    return Result(statement.predicate.figures, same, judged_by)


def _grid(
    manifest: Manifest | EngineManifest | None,
    results: Sequence[Result],
    conflicts: ConflictReport | None,
    *,
    is_whole: bool,
) -> Grid | None:
    tensors, origin = {}, "the adapters' factors"
    measured = [r.figures for r in results if r.figures.weights is not None]
    if measured and measured[-1].weights is not None:
        weights = measured[-1].weights
        tensors = of_comparison(weights)
        origin = f"the comparison of {moment(measured[-1].started)}, against the merge in float64"
        if weights.measured < len(weights.tensors):
            origin += f" ({weights.measured} of {len(weights.tensors)} tensors)"
    elif isinstance(manifest, Manifest) and manifest.retention is not None:
        tensors = of_manifest(manifest.retention)
        origin = _FULL if manifest.retention.measured == "full" else _SAMPLE
    meetings = {}
    if conflicts is not None and manifest is not None:
        meetings = meetings_of(conflicts, names_of(manifest.adapters))
    return grid_of(tensors, origin, meetings, worst_conflicts_only=bool(meetings) and not is_whole)


def _conflicts(
    manifest: Manifest | EngineManifest | None,
) -> tuple[ConflictReport | None, bool]:
    """How far the adapters are in each other's way, and whether that is told of all modules: the
    manifest has the worst of every pair, the adapters themselves, where they still lie where they
    were, tell all. Nothing is fetched for it."""
    known = manifest.conflicts if isinstance(manifest, Manifest) else None
    if manifest is None or known is None:
        return known, False
    try:
        base = _unchanged(manifest.base)
        adapters = [place for place in map(_unchanged, manifest.adapters) if place is not None]
        if base is None or len(adapters) < len(manifest.adapters):
            return known, False
        return find_conflicts(open_inputs(base, adapters, progress=False), None).report, True
    except (RemergeError, OSError):
        return known, False


def _unchanged(record: InputRecord) -> Path | None:
    """Where an input lies on this machine, if what is small of it is what the manifest names."""
    if record.hub_id is not None:
        return None
    found = user_index.location({file.name: file.sha256 for file in record.files})
    if found is None or not found.is_dir():
        return None
    small = [file for file in record.files if file.name.startswith(("config.", "adapter"))]
    same = all(file_digest(found / file.name) == file.sha256 for file in small)
    return found if same else None


def read_formats(path: Path) -> FormatTable:
    """A table that ``remerge formats --json`` wrote; raises `UsageError`."""
    hint = "Write one: remerge formats BASE ADAPTER --json > FILE."
    try:
        return TypeAdapter(FormatTable).validate_python(json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"--formats {path} cannot be read: {error.strerror}.") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise UsageError(f"--formats {path} is no table of formats.", hint=hint) from error


def moment(started: str) -> str:
    """A moment for people, in UTC where it tells its zone; as it stands where it is none."""
    try:
        found = datetime.fromisoformat(started)
    except ValueError:
        return started
    if found.tzinfo is None:
        return f"{found:%Y-%m-%d %H:%M}"
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
