"""Where the inputs of a manifest lie now, and whether they still are the ones that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from remerge.artefacts import user_index
from remerge.artefacts.digests import file_digest, weight_digests
from remerge.artefacts.manifest import InputRecord
from remerge.errors import BadInput, IntegrityError, UsageError
from remerge.merging.plan import Plan
from remerge.sources.references import hub_origin


def place_of(record: InputRecord, kind: str) -> str:
    """Where an input of a manifest can be read: where it was last seen, or the Hub."""
    found = user_index.location({file.name: file.sha256 for file in record.files})
    if record.hub_id is not None:
        if found is not None and _is_still_there(record, found):
            return str(found)
        reference = f"{record.hub_id}@{record.commit}" if record.commit else record.hub_id
        return f"{reference}:{record.subfolder}" if record.subfolder else reference
    if found is None or not found.is_dir():
        raise BadInput(
            f"It is not known where the {kind} {record.name!r} lies now.",
            why="It was merged on another machine, or has been moved.",
            hint=f"Name it with --{kind} PATH.",
        )
    return str(found)


def _is_still_there(record: InputRecord, place: Path) -> bool:
    """Whether a cache of the Hub, maybe not this command's, still has this commit there."""
    origin = hub_origin(place)
    same = origin is not None and (origin.hub_id, origin.commit) == (record.hub_id, record.commit)
    return same and all((place / file.name).is_file() for file in record.files)


def adapters_of(
    records: Sequence[InputRecord], given: Sequence[str | Path]
) -> Sequence[str | Path]:
    """The adapters of a manifest: as they were given, all or none, else where they lie."""
    if given and len(given) != len(records):
        names = ", ".join(record.name for record in records)
        raise UsageError(
            f"Adapters given: {len(given)}; adapters in the merge: {len(records)}.",
            hint=f"Give all, in this order: {names}.",
        )
    return given or [place_of(record, "adapter") for record in records]


def check_input(record: InputRecord, path: Path, digests: Mapping[str, str], kind: str) -> None:
    """Raises `IntegrityError` for an input that is not the one that the manifest names."""
    for file in record.files:
        if digests.get(file.name) != file.sha256:
            there = (path / file.name).is_file()
            raise IntegrityError(
                f"The {kind}'s {path / file.name} is "
                + ("not the file that the manifest names." if there else "missing."),
                why=f"The {kind} was changed or replaced since the merge, or another was given.",
                hint=f"Name the right one with --{kind} PATH.",
            )


def shard_digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of the base's weight files by name: as the Hub's cache states it, remembered, or read
    now."""
    digests = weight_digests([shard.path for shard in plan.base.shards])
    return {shard.name: digests[shard.path] for shard in plan.base.shards}


def base_digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of the base's weight files, as `shard_digests`, and of its configuration."""
    return shard_digests(plan) | {"config.json": file_digest(plan.base.path / "config.json")}
