"""Putting a benchmark where it is asked for: its figures as JSON, and its plot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from remerge.errors import UsageError
from remerge.outputs.directory import write_durably
from remerge.serving.bench.drawing import can_draw, draw
from remerge.serving.bench.measured import Benchmark
from remerge.sources.storage import cannot_write

_NAME = "bench"


@dataclass(frozen=True)
class Files:
    """Where figures and plot go; no ``plot`` where what draws it is not installed."""

    figures: Path
    plot: Path | None


def check_place(place: Path, *, overwrite: bool) -> Files:
    """What would be written to ``place``, a directory or a file that ends in .json.

    Raises `UsageError`, before anything is measured, for files that are there, or a place that is
    none.
    """
    if place.suffix == ".json" and not place.is_dir():
        folder, stem = place.parent, place.stem
        if not folder.is_dir():
            raise UsageError(f"{folder} is no directory.", hint="Choose another -o.")
    else:
        folder, stem = place, _NAME
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"{folder} is a file that does not end in .json.", hint="Choose another -o."
            )
    files = Files(folder / f"{stem}.json", folder / f"{stem}.svg" if can_draw() else None)
    for file in (files.figures, files.plot):
        if file is not None and file.exists() and (not overwrite or file.is_dir()):
            raise UsageError(
                f"{file} exists.", hint="Choose another -o, or add --overwrite to replace it."
            )
    return files


def write(found: Benchmark, files: Files) -> tuple[Path, ...]:
    """Write the plot, then the figures, each whole or not at all; what was written."""
    try:
        files.figures.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(files.figures.parent, error) from error
    if files.plot is not None:
        write_durably(files.plot, draw(found).encode())
    content = json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False)
    write_durably(files.figures, f"{content}\n".encode())
    return (files.figures,) if files.plot is None else (files.figures, files.plot)
