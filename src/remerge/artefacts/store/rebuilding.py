"""Making a stored merge again: to prove that it can be, and to bring back what was collected."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from remerge.artefacts.making import Report
from remerge.artefacts.making_again import check_reproduced, derive_digests, make_again
from remerge.artefacts.rederiving import Derivation
from remerge.artefacts.store import blobs
from remerge.artefacts.store.inputs import open_stored
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import (
    Proof,
    Record,
    State,
    StoredFile,
    read_record,
    read_state,
)
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.transactions import Change, changing, commit
from remerge.errors import BadInput, TryAgain
from remerge.version import ALGORITHM, __version__


@dataclass(frozen=True)
class Means:
    """What is at hand to derive with; none of it changes a byte."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int | None = None
    pythons: Mapping[str, str] = field(default_factory=dict[str, str])
    report: Report = lambda done, total, what: None


@dataclass(frozen=True)
class Rebuilt:
    """What `rebuild` did: ``restored`` are files that were missing or damaged and are back."""

    id: str
    files: int
    nbytes: int
    seconds: float
    restored: tuple[str, ...]


def rebuild(store: Store, target: str, means: Means) -> Rebuilt:
    """Derive an artefact again, put back what is missing, and record that it can be done.

    Every byte of base and adapters is read and held to the manifest. Raises `BadInput` where an
    input cannot be found, `IntegrityError` where one is another, `NotReproduced` where a byte of
    the result differs; the store then is as it was.
    """
    with blobs.staging(store) as place:
        artefact = resolve(store, target)
        record = read_record(store, artefact)
        derived = [file for file in record.files if file.derived]
        was_collected = read_state(store, artefact).collected is not None
        missing = [file for file in derived if not blobs.is_whole(store, file.sha256)]
        made = place / "made"
        started = time.monotonic()
        derivation = _open(store, record, place, means)
        if missing:
            make(derivation, made, means)
        else:
            digests = derive_digests(
                derivation,
                device=means.device,
                threads=means.threads,
                pythons=means.pythons,
                report=means.report,
                work=place,
            )
            check_reproduced(derivation, digests)
        seconds = time.monotonic() - started
        with changing(store):
            if missing and any(
                blobs.find(store, file.sha256) is None for file in derived if file not in missing
            ):
                raise TryAgain(f"{target} was collected while it was derived again.")
            moves = [(_read_only(made / file.name), _place(store, file)) for file in missing]
            state = read_state(store, artefact)
            proved = state.model_copy(update={"proof": proof_of(seconds), "collected": None})
            # Another artefact may have kept the bytes of what was collected: they are back.
            back = was_collected and all(blobs.find(store, file.sha256) for file in derived)
            if not missing and not back:
                # Collected while it was derived: then it is proved, and still collected.
                proved = proved.model_copy(update={"collected": state.collected})
            action = "rebuild" if missing or back else "prove"
            _record(store, artefact, action, moves, proved, target)
    restored = tuple(file.name for file in missing)
    nbytes = sum(file.size for file in derived)
    return Rebuilt(artefact, len(derived), nbytes, seconds, restored)


def make(derivation: Derivation, out: Path, means: Means) -> None:
    """Every output of a stored merge, in the new directory ``out``, each held to its digest."""
    make_again(
        derivation,
        out,
        device=means.device,
        threads=means.threads,
        pythons=means.pythons,
        report=means.report,
    )


def remake(store: Store, record: Record, out: Path, means: Means) -> None:
    """A collected artefact again in the new directory ``out``, its manifest too; the store stays as
    it is."""
    with _inputs(store, out) as place:
        make(_open(store, record, place, means), out, means)
    assert record.manifest is not None
    manifest = next(file for file in record.files if file.name == record.manifest)
    blobs.give(store, manifest.sha256, out / record.manifest)


@contextmanager
def _inputs(store: Store, out: Path) -> Generator[Path]:
    """A directory for the inputs: in the store, where they need not be copied, or beside ``out``
    where the store cannot be written."""
    if os.access(store.root, os.W_OK):
        with blobs.staging(store) as place:
            yield place
        return
    place = out.with_name(f"{out.name}.inputs")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _open(store: Store, record: Record, place: Path, means: Means) -> Derivation:
    def base(artefact: str, out: Path) -> None:
        remake(store, read_record(store, artefact), out, means)

    return open_stored(store, record, place, base)


def _place(store: Store, file: StoredFile) -> Path:
    canonical = store.canonical(file.sha256)
    return canonical if canonical.exists() else store.derived(file.sha256)


def _read_only(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{path.name} was not made again.")
    path.chmod(0o444)
    return path


def proof_of(seconds: float) -> Proof:
    """That an artefact was derived again here and now, in so many seconds."""
    return Proof(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        versions={
            "remerge": __version__,
            "algorithm": str(ALGORITHM),
            "torch": torch.__version__,
        },
    )


def _record(
    store: Store,
    artefact: str,
    action: str,
    moves: list[tuple[Path, Path]],
    state: State,
    target: str,
) -> None:
    entry = {"action": action, "name": target, "artefact": artefact}
    writes: dict[Path, bytes | None] = {store.state(artefact): state.content()}
    commit(store, Change(entry, (artefact,), moves=moves, writes=writes))
