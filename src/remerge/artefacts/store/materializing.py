"""Writing an artefact out of the store, where it is needed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.rebuilding import Means, remake
from remerge.artefacts.store.records import (
    Record,
    read_record,
    read_state,
)
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.transactions import settle
from remerge.errors import IntegrityError, RemergeError
from remerge.outputs.directory import check_free, check_place, check_space, publish, workplace
from remerge.sources.storage import sync_directory


@dataclass(frozen=True)
class Materialized:
    """What was written: ``rebuilt`` where derived files were made again for it."""

    id: str
    output: Path
    files: int
    nbytes: int
    rebuilt: bool


def materialize(
    store: Store,
    target: str,
    out: Path,
    means: Means,
    *,
    link: blobs.Link = "copy",
    overwrite: bool = False,
) -> Materialized:
    """Write an artefact's files into the directory ``out``, each held to its digest.

    What was collected, or is damaged in the store, is derived again. ``out`` is complete in the end
    or as it was. Raises as `rebuild` where it must be derived and cannot be.
    """
    settle(store)
    artefact = resolve(store, target)
    record = read_record(store, artefact)
    check_place(out, [store.root])
    check_free(out, overwrite=overwrite)
    check_space(out, record.size)
    with workplace(out, {"artefact": artefact, "link": link}) as place:
        state = read_state(store, artefact)
        lost = "it was collected" if state.collected else _give(store, record, place.work, link)
        if lost is not None:
            _remake(store, record, place.work, means, lost)
        others = [file for file in record.files if not file.derived]
        for file in (*others, *state.attached):
            try:
                blobs.give(store, file.sha256, _clear(place.work / file.name))
            except FileNotFoundError:
                raise IntegrityError(
                    f"The bytes of {file.name} ({file.sha256}) are missing in the store {store}.",
                    why="Somebody deleted them: no command does.",
                    hint="Add the same file again: remerge store add PATH.",
                ) from None
        for folder in [p for p in place.work.rglob("*") if p.is_dir()]:
            sync_directory(folder)
        publish(place)
    files = (*record.files, *state.attached)
    return Materialized(
        artefact, out, len(files), sum(file.size for file in files), lost is not None
    )


def _give(store: Store, record: Record, work: Path, link: blobs.Link) -> str | None:
    """Take the derived files from the store; why they must be derived again, if they must."""
    for file in record.files:
        if file.derived:
            try:
                blobs.give(store, file.sha256, _clear(work / file.name), link)
            except FileNotFoundError:
                return "its bytes are no longer in the store"
            except IntegrityError:
                return "its bytes in the store are damaged"
    return None


def _remake(store: Store, record: Record, work: Path, means: Means, why: str) -> None:
    """The derived files, made again beside the work and moved into it."""
    made = work / ".made"
    # A killed run may have left its own.
    shutil.rmtree(made, ignore_errors=True)
    try:
        remake(store, record, made, means)
    except RemergeError as error:
        raise type(error)(
            f"The artefact must be made again, as {why}. {error.what}",
            why=error.why,
            hint=error.hint,
        ) from error
    for file in record.files:
        if file.derived:
            (made / file.name).rename(_clear(work / file.name))
    shutil.rmtree(made)


def _clear(path: Path) -> Path:
    """A place for a file, of which a killed run may have left a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path
