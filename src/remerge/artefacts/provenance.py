"""``provenance.json``: how an output was made, as an in-toto Statement v1 with SLSA's provenance v1
(https://slsa.dev/spec/v1.0/provenance).

What was made from what is told by the manifest alone, which the statement names by its digest; only
times, resources and the invocation's id are of one run. docs/provenance.md has the mapping.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from remerge.artefacts.records import MANIFEST, PROVENANCE, InputRecord
from remerge.errors import BadInput
from remerge.outputs.single_file import provenance_beside
from remerge.sources.documents import as_list, as_object, read_json_object

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILDER = "urn:remerge:builder"
# By the format of the manifest; a number is raised when parameters get another meaning.
BUILD_TYPES = {
    "remerge/1": "urn:remerge:merge:1",
    "remerge-engine/1": "urn:remerge:export:1",
    "remerge-adapter/1": "urn:remerge:combine:1",
    "remerge-extraction/1": "urn:remerge:extract:1",
}
MEASUREMENTS = "measurements"


@dataclass(frozen=True)
class Making:
    """What only one run of a command knows: an id that no other run has, when it began and ended
    (seconds since 1970), on what, and what it took.

    ``measured`` holds seconds and bytes by name; ``versions`` the libraries at work that the
    manifest does not name.
    """

    invocation: str
    started: float
    finished: float
    device: str
    instruction_set: str
    threads: int | None = None
    chunk: int | None = None
    measured: Mapping[str, float] = field(default_factory=dict[str, float])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def provenance_of(manifest: bytes, making: Making, *, name: str = MANIFEST) -> dict[str, Any]:
    """The statement about the files of a manifest, and the manifest itself, which lies beside them
    as ``name``."""
    document = json.loads(manifest)
    outputs = [(record["name"], record["sha256"]) for record in document["outputs"]]
    outputs.append((name, hashlib.sha256(manifest).hexdigest()))
    return {
        "_type": STATEMENT,
        "subject": [{"name": of, "digest": {"sha256": digest}} for of, digest in sorted(outputs)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPES[document["format"]],
                "externalParameters": _asked(document),
                "internalParameters": _internal(making),
                "resolvedDependencies": list(_dependencies(document)),
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {**making.versions, **document["versions"]},
                },
                "metadata": {
                    "invocationId": making.invocation,
                    "startedOn": _moment(making.started),
                    "finishedOn": _moment(making.finished),
                },
                "byproducts": [{"name": MEASUREMENTS, "annotations": dict(making.measured)}],
            },
        },
    }


def to_text(statement: Mapping[str, Any]) -> bytes:
    """A statement as it stands on disk."""
    return (json.dumps(statement, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def provenance_path(output: Path) -> Path:
    """Where the provenance of an output lies, be it a directory or one file."""
    return output / PROVENANCE if output.is_dir() else provenance_beside(output)


def measured_of(output: Path) -> dict[str, Any]:
    """What is known of how an output was made: ``started``, ``device``, ``threads``, ``seconds``,
    ``peak_memory_bytes``. Empty where no provenance lies there, or one that says nothing."""
    path = provenance_path(output)
    if not path.is_file():
        return {}
    try:
        return _measurements(read_json_object(path))
    except BadInput:
        return {}


def _measurements(document: Mapping[str, Any]) -> dict[str, Any]:
    predicate = as_object(document.get("predicate"))
    if predicate is None:
        # Before it was a statement, it said these by the same names.
        return dict(document)
    definition = as_object(predicate.get("buildDefinition")) or {}
    internal = as_object(definition.get("internalParameters")) or {}
    run = as_object(predicate.get("runDetails")) or {}
    metadata = as_object(run.get("metadata")) or {}
    byproducts = [as_object(one) or {} for one in as_list(run.get("byproducts")) or ()]
    found = next((one for one in byproducts if one.get("name") == MEASUREMENTS), None)
    measured = as_object(found.get("annotations")) or {} if found is not None else {}
    told = {
        "started": metadata.get("startedOn"),
        "device": internal.get("device"),
        "threads": internal.get("threads"),
        "seconds": measured.get("seconds"),
        "peak_memory_bytes": measured.get("peakMemoryBytes"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _asked(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the user decided: inputs by the names that dependencies bear, and the recipe."""
    inputs = {role: _name(record) for role, record in _inputs(document)}
    asked = {name: document[name] for name in ("recipe", "options", "engine") if name in document}
    return {**asked, "inputs": inputs}


def _internal(making: Making) -> dict[str, Any]:
    # Of these only the accumulation decides bytes, and it is the same everywhere.
    found = {
        "accumulation": "float64",
        "device": making.device,
        "instructionSet": making.instruction_set,
        "threads": making.threads,
        "chunkBytes": making.chunk,
    }
    return {name: value for name, value in found.items() if value is not None}


def _dependencies(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Every file that was read, and of what came from the Hub the repository's commit."""
    for role, record in _inputs(document):
        annotations: dict[str, Any] = {"name": record.name}
        if record.run is not None:
            annotations["trainingRun"] = record.run.model_dump(mode="json", exclude_none=True)
        if record.hub_id is not None:
            repository: dict[str, Any] = {"name": role, "uri": _uri(record)}
            if record.commit is not None:
                repository["digest"] = {"gitCommit": record.commit}
            yield {**repository, "annotations": annotations}
        for file in record.files:
            found: dict[str, Any] = {"name": f"{role}/{file.name}"}
            if record.hub_id is not None:
                found["uri"] = _uri(record, file.name)
            found["digest"] = {"sha256": file.sha256}
            yield {**found, "annotations": {**annotations, "size": file.size}}
    for option, file in document.get("files", {}).items():
        yield {
            "name": f"{option}/{file['name']}",
            "digest": {"sha256": file["sha256"]},
            "annotations": {"size": file["size"]},
        }


def _inputs(document: Mapping[str, Any]) -> Sequence[tuple[str, InputRecord]]:
    """The inputs with the names that merge keys give them: base, adapter/1, ..."""
    roles = {name: document[name] for name in ("base", "merged") if name in document}
    roles |= {f"adapter/{n}": one for n, one in enumerate(document.get("adapters", ()), 1)}
    return [(role, InputRecord.model_validate(record)) for role, record in roles.items()]


def _name(record: InputRecord) -> str:
    return record.name if record.hub_id is None else _uri(record)


def _uri(record: InputRecord, file: str | None = None) -> str:
    """As huggingface_hub's file system spells it: ``hf://org/name@commit/path``."""
    commit = f"@{record.commit}" if record.commit else ""
    path = "/".join(part for part in (record.subfolder, file) if part)
    return f"hf://{record.hub_id}{commit}" + (f"/{quote(path)}" if path else "")


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
