"""Where the base and the adapters of a stored merge lie: in the store, else where the user has
them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from remerge.artefacts.any_manifest import manifest_from
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.manifest import PREPARATIONS, InputRecord, Manifest
from remerge.artefacts.origins import place_of
from remerge.artefacts.rederiving import Derivation, Sources, open_again
from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.describing import input_digest
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Record, read_record, read_state
from remerge.errors import BadInput, UsageError
from remerge.merging.budget import DEFAULT
from remerge.sources.references import Reference, resolve

# Makes a collected artefact again, in a directory.
Remake = Callable[[str, Path], None]


def manifest_of(store: Store, record: Record) -> Manifest | EngineManifest:
    """The manifest of a derived artefact; raises `UsageError` for what was not derived."""
    if not record.derived or record.manifest is None:
        raise UsageError(
            f"This is an {record.kind}, which is kept and not made again."
            if record.kind == "adapter"
            else f"This is a {record.kind}, which is kept and not made again.",
        )
    file = next(file for file in record.files if file.name == record.manifest)
    path = blobs.find(store, file.sha256)
    if path is None or not blobs.is_whole(store, file.sha256):
        raise BadInput(
            f"The manifest {file.sha256} is missing in the store {store}, or damaged.",
            hint="remerge store verify says what else is.",
        )
    found = manifest_from(path.read_bytes(), path)
    assert isinstance(found, Manifest | EngineManifest)
    return found


def open_stored(store: Store, record: Record, place: Path, remake: Remake) -> Derivation:
    """A stored merge, open to be derived again; ``place`` is a directory of the store's staging for
    its inputs.

    Raises `BadInput` where an input cannot be found, `IntegrityError` where it is another one,
    `NotReproduced` where the merge is planned differently today.
    """
    manifest = manifest_of(store, record)
    base = _base(store, manifest.base, place / "base", remake)
    adapters = [
        _adapter(store, adapter, place / f"adapter-{number}")
        for number, adapter in enumerate(manifest.adapters, 1)
    ]
    factors = next((file for file in record.files if file.name == PREPARATIONS), None)
    preparations = None if factors is None else blobs.find(store, factors.sha256)
    sources = Sources(base, adapters)
    return open_again(manifest, sources, max_memory=DEFAULT, preparations=preparations)


def _adapter(store: Store, record: InputRecord, place: Path) -> Reference:
    for artefact in index.inputs(store, _digest(record)):
        _lay_out(store, read_record(store, artefact), place)
        return Reference(place)
    return resolve(place_of(record, "adapter"), "adapter")


def _base(store: Store, record: InputRecord, place: Path, remake: Remake) -> Reference | None:
    """A base of the store, None where its manifest must tell. One that was collected is made again
    only where nothing else has it."""
    collected: list[str] = []
    for artefact in index.inputs(store, _digest(record)):
        if read_state(store, artefact).collected is None:
            _lay_out(store, read_record(store, artefact), place)
            return Reference(place)
        collected.append(artefact)
    try:
        place_of(record, "base")
        return None
    except BadInput:
        if not collected:
            raise
    remake(collected[0], place)
    return Reference(place)


def _lay_out(store: Store, record: Record, place: Path) -> None:
    """An artefact's files under their names: links to the blobs, which are read-only. A collection
    that runs meanwhile takes them from the store, not from here."""
    for file in record.files:
        target = place / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            blobs.lend(store, file.sha256, target)
        except FileNotFoundError as error:
            raise BadInput(
                f"The blob {file.sha256} is missing in the store {store}.",
                hint="remerge store verify says what else is.",
            ) from error


def _digest(record: InputRecord) -> str:
    return input_digest({file.name: file.sha256 for file in record.files})
