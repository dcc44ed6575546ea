"""An output that is one file, with what is told of it beside it: ``model.gguf``,
``model.gguf.provenance.json`` and ``model.gguf.remerge.json``.

They are renamed one after the other, the manifest last; the next run of the same output ends what
a kill cut between them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remerge.errors import UsageError
from remerge.outputs.directory import MANIFEST, PROVENANCE, Workplace, sibling, workplace
from remerge.sources.storage import sync_directory

FILE = "output"


def manifest_beside(file: Path) -> Path:
    """Where the manifest of a file lies."""
    return file.with_name(f"{file.name}.{MANIFEST}")


def provenance_beside(file: Path) -> Path:
    """Where the provenance of a file lies."""
    return file.with_name(f"{file.name}.{PROVENANCE}")


def check_file(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what was not asked to be replaced."""
    if out.is_dir():
        raise UsageError(f"{out} is a directory.", hint="Choose another -o.")
    beside = (out, manifest_beside(out), provenance_beside(out))
    if any(path.exists() for path in beside) and not overwrite:
        raise UsageError(
            f"{out} exists.",
            why="It may hold somebody's work.",
            hint="Choose another -o, or add --overwrite to replace it.",
        )


@contextmanager
def file_workplace(out: Path, state: dict[str, Any]) -> Generator[Workplace]:
    """Open the work of this file, alone: what becomes it is ``FILE`` in the work."""
    finish_file(out)
    with workplace(out, state) as place:
        yield place


@contextmanager
def named(place: Workplace) -> Generator[Path]:
    """The finished work under the name that it will have, manifest beside it, for whoever is to
    look at it before it is published."""
    with tempfile.TemporaryDirectory(prefix=".named-", dir=place.work) as folder:
        file = Path(folder) / place.out.name
        file.symlink_to(place.work / FILE)
        manifest_beside(file).symlink_to(place.work / MANIFEST)
        yield file


def publish_file(place: Workplace) -> None:
    """Make the work the output: the file and what is told of it, or (killed at any moment) what the
    next run makes one of the two whole states."""
    sync_directory(place.work)
    (place.work / FILE).rename(place.out)
    finish_file(place.out)
    shutil.rmtree(place.work, ignore_errors=True)


def finish_file(out: Path) -> None:
    """Put provenance and manifest beside the file where the file had come to its place."""
    out = out.resolve()
    work = sibling(out)
    if not (work / MANIFEST).is_file() or (work / FILE).exists():
        return
    # That the manifest still waits is what says that this is to be done.
    if (work / PROVENANCE).is_file():
        (work / PROVENANCE).rename(provenance_beside(out))
    (work / MANIFEST).rename(manifest_beside(out))
    sync_directory(out.parent)
