"""Two artefacts side by side: each in the store by its name, or a file or directory anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from remerge.artefacts.differences import SETTINGS, Differences, Side, differences
from remerge.artefacts.evaluations import Evaluation, evaluation_of, statement_from
from remerge.artefacts.found_files import Report, manifest_at, manifests_near, weights_below
from remerge.artefacts.manifest_facts import Told, read_told
from remerge.artefacts.records import CARD, MANIFEST, PROVENANCE
from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.library import StoreLibrary
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.tracing import is_there, nothing_there
from remerge.artefacts.store.transactions import settle
from remerge.artefacts.tensor_differences import Contents
from remerge.artefacts.test_result import tests_of
from remerge.artefacts.traced import Kept
from remerge.errors import BadInput

_ABOUT = (CARD, PROVENANCE)


def compare(a: str | Path, b: str | Path, store: Store | None, report: Report) -> Differences:
    """What differs between two artefacts.

    Each is a path that is there, else what a store knows by that name or digest. Raises `BadInput`
    for what is neither, and for damaged files.
    """
    if store is not None:
        settle(store)
    return differences(_side(a, store), _side(b, store), report)


def _side(what: str | Path, store: Store | None) -> Side:
    path, text = Path(what).expanduser(), str(what)
    if is_there(path):
        return _from_path(path)
    if store is None or os.sep in text:
        raise nothing_there(text)
    library = StoreLibrary(store)
    return _from_store(text, library.get(resolve(store, text)), store)


def _from_store(label: str, kept: Kept, store: Store) -> Side:
    told = None if kept.manifest is None else read_told(kept.manifest, f"{label}'s manifest")
    names = {name: sha256 for name, sha256 in kept.files.items() if not _is_about(name)}
    places = {name: blobs.find(store, sha256) for name, sha256 in names.items()}
    files = {name: path for name, path in places.items() if path is not None}
    return Side(
        label=label,
        kind=kept.kind if told is None else told.kind,
        told=told,
        contents=Contents(files, {name: names[name] for name in files}),
        names=frozenset(names),
        evaluations=_evaluations(kept.statements),
        back=f"remerge store materialize {label} -o DIR" if kept.collected else None,
    )


def _from_path(path: Path) -> Side:
    if path.is_file() and (path.name == MANIFEST or path.name.endswith(f".{MANIFEST}")):
        single = path.with_name(path.name.removesuffix(f".{MANIFEST}"))
        path = path.parent if path.name == MANIFEST else single
        if not path.exists():
            raise BadInput(f"{path}, which the manifest is about, is not beside it.")
    if path.is_dir():
        return _from_directory(path)
    if not path.is_file():
        raise BadInput(f"{path} is neither a file nor a directory.")
    told, output = _manifest_of(path)
    return Side(
        label=str(path),
        kind=told.kind if told is not None else path.suffix.removeprefix("."),
        told=told,
        contents=Contents({path.name: path}, {}),
        names=frozenset({path.name}),
        evaluations=_evaluations(_statements(output)),
    )


def _from_directory(path: Path) -> Side:
    told = manifest_at(path / MANIFEST)
    made = {} if told is None else told.outputs
    beside = [name for name in SETTINGS if (path / name).is_file()]
    names = {*made, *weights_below(path), *beside}
    if not names:
        raise BadInput(f"{path} holds no model and no adapter.")
    adapter = "adapter_config.json" in beside
    return Side(
        label=str(path),
        kind=told.kind if told is not None else "adapter" if adapter else "base",
        told=told,
        contents=Contents({n: path / n for n in sorted(names) if (path / n).is_file()}, {}),
        names=frozenset(names),
        evaluations=_evaluations(_statements(path)),
    )


def _manifest_of(file: Path) -> tuple[Told | None, Path]:
    """The manifest that names a file, and the output that it is about: the file, or a directory."""
    for told, manifest, name in manifests_near(file):
        if manifest.name == f"{file.name}.{MANIFEST}":
            return told, file
        if name in told.outputs:
            return told, manifest.parent if manifest.name == MANIFEST else file
    return None, file


def _is_about(name: str) -> bool:
    return name in _ABOUT or name == MANIFEST or name.endswith(f".{MANIFEST}")


def _statements(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(tests_of(output).glob("*.json"))]


def _evaluations(statements: Iterable[bytes]) -> tuple[Evaluation, ...]:
    found = [evaluation_of(statement_from(one, "A test result"), ()) for one in statements]
    return tuple(sorted(found, key=lambda one: one.date))
