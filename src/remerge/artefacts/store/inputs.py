"""Where the base and the adapters of a stored merge lie: in the store, else where the user has
them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, product
from pathlib import Path

from remerge.artefacts.any_manifest import manifest_from
from remerge.artefacts.engine_manifest import EngineManifest
from remerge.artefacts.manifest import PREPARATIONS, InputRecord, Manifest
from remerge.artefacts.origins import place_of
from remerge.artefacts.rederiving import Derivation, Sources, check_inputs, open_again
from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.describing import input_digest
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Record, read_record, read_state
from remerge.artefacts.store.words import a
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.merging.budget import DEFAULT
from remerge.sources.references import Reference, resolve

# Makes a collected artefact again, in a directory.
Remake = Callable[[str, Path], None]
# Puts an input in a directory, or says where it lies; None where its manifest must tell.
Place = Callable[[Path], Reference | None]
# So many combinations of equal weights are tried.
_MOST = 16


def manifest_of(store: Store, record: Record) -> Manifest | EngineManifest:
    """The manifest of a derived artefact; raises `UsageError` for what was not derived."""
    if not record.derived or record.manifest is None:
        raise UsageError(
            f"This is {a(record.kind)}, which is kept and not made again.",
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
    factors = next((file for file in record.files if file.name == PREPARATIONS), None)
    preparations = None if factors is None else blobs.find(store, factors.sha256)
    shards = {file.name: file.sha256 for file in manifest.base.files}
    adapters = [_adapters(store, adapter) for adapter in manifest.adapters]
    failure: RemergeError | None = None
    # Several inputs may have the same weights, and other files beside them.
    several = product(_bases(store, manifest.base, remake), *adapters)
    for number, (base, *others) in enumerate(islice(several, _MOST)):
        tried = place / f"inputs-{number}"
        try:
            found = open_again(
                manifest,
                Sources(
                    base(tried / "base"),
                    [_found(one(tried / f"adapter-{n}")) for n, one in enumerate(others, 1)],
                ),
                max_memory=DEFAULT,
                preparations=preparations,
            )
            # The weights are read when it is derived; all that lies beside them is read here.
            check_inputs(found, shards)
            return found
        except RemergeError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _bases(store: Store, record: InputRecord, remake: Remake) -> list[Place]:
    """Bases with the weights of the manifest's: those in the store, what the manifest leads to, and
    last those that must be made again."""
    here: list[Place] = []
    collected: list[Place] = []
    for artefact in index.inputs(store, _digest(record)):
        if read_state(store, artefact).collected is None:
            here.append(_stored(store, artefact))
        else:
            collected.append(_remade(artefact, remake))
    return [*here, lambda place: None, *collected]


def _adapters(store: Store, record: InputRecord) -> list[Place]:
    """The same for an adapter."""
    here = [_stored(store, artefact) for artefact in index.inputs(store, _digest(record))]
    return [*here, lambda place: resolve(place_of(record, "adapter"), "adapter")]


def _stored(store: Store, artefact: str) -> Place:
    def at(place: Path) -> Reference:
        lay_out(store, read_record(store, artefact), place)
        return Reference(place)

    return at


def _remade(artefact: str, remake: Remake) -> Place:
    def make(place: Path) -> Reference:
        place.parent.mkdir(parents=True, exist_ok=True)
        remake(artefact, place)
        return Reference(place)

    return make


def _found(reference: Reference | None) -> Reference:
    assert reference is not None
    return reference


def lay_out(store: Store, record: Record, place: Path) -> None:
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
