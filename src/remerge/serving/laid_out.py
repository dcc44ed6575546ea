"""An artefact of the store as the files that it is, with the inputs that it was made from, for as
long as it is looked at. Nothing is copied that can be linked: blobs are read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.manifest import InputRecord
from remerge.artefacts.store import blobs
from remerge.artefacts.store.inputs import lay_out, manifest_of, open_stored
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.rebuilding import Means, make, remake
from remerge.artefacts.store.records import Record, State, read_record

# Below it lies nothing else: an artefact may be called anything.
ARTEFACT = "artefact"
_LONGEST = 60


@dataclass(frozen=True)
class LaidOut:
    """``output`` is what engines and commands take, a directory or one file. ``base`` and
    ``adapters`` are those that it was made from, under the names that its manifest has for them;
    ``made_again`` where its derived files were collected."""

    output: Path
    base: Path | None = None
    adapters: tuple[Path, ...] = ()
    made_again: bool = False


def lay_out_artefact(
    store: Store, record: Record, state: State, name: str, place: Path, means: Means
) -> LaidOut:
    """The artefact in ``place``, a directory of the store's staging, called ``name``.

    What was collected is derived again, each file held to its digest. Raises as
    `remerge.artefacts.store.inputs.open_stored` where base or adapters are missing or others.
    """
    folder = place / ARTEFACT / name
    folder.parent.mkdir()
    if not record.derived:
        lay_out(store, record, folder)
        _attach(store, state, folder)
        return LaidOut(folder)
    derivation = open_stored(
        store,
        record,
        place,
        lambda base, out: remake(store, read_record(store, base), out, means),
    )
    if state.collected is None:
        lay_out(store, record, folder)
    else:
        make(derivation, folder, means)
        for file in record.files:
            if not file.derived and not (folder / file.name).exists():
                blobs.give(store, file.sha256, folder / file.name)
    _attach(store, state, folder)
    manifest = manifest_of(store, record)
    inputs = derivation.inputs
    (base,) = _named([manifest.base], [inputs.base.path], place / "made-from-base")
    paths = [adapter.path for adapter in inputs.adapters]
    return LaidOut(
        output=folder if record.single is None else folder / record.single,
        base=base,
        adapters=_named(manifest.adapters, paths, place / "made-from"),
        made_again=state.collected is not None,
    )


def _attach(store: Store, state: State, folder: Path) -> None:
    """What came with it, in copies: a comparison writes beside them."""
    for file in state.attached:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        blobs.give(store, file.sha256, folder / file.name)


def _named(records: Sequence[InputRecord], paths: Sequence[Path], place: Path) -> tuple[Path, ...]:
    """Inputs under the names that their users know: a set of questions may bear one."""
    found: list[Path] = []
    for number, (record, path) in enumerate(zip(records, paths, strict=True)):
        last = record.name.rstrip("/").rpartition("/")[2].replace("\0", "")[:_LONGEST]
        link = place / str(number) / ("input" if last in ("", ".", "..") else last)
        link.parent.mkdir(parents=True)
        link.symlink_to(path.absolute())
        found.append(link)
    return tuple(found)
