"""Printing: sizes, progress, notes. Standard output is for results, standard error for the rest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from remerge.errors import RemergeError

Report = Callable[[int, int, str], None]


def size(nbytes: int) -> str:
    """Bytes for people: 1.5 GB."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"


def print_json(document: Any) -> None:
    """The one JSON document of a command."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def error_document(error: RemergeError) -> dict[str, Any]:
    """A failure as JSON data."""
    return {
        "kind": error.label,
        "exit_code": error.exit_code,
        "what": error.what,
        "why": error.why,
        "hint": error.hint,
    }


def printable(text: str) -> str:
    """Text of a file from anywhere, without what would steer a terminal."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean.encode("utf-8", "replace").decode()


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Two columns, aligned."""
    width = max((len(left) for left, _ in rows), default=0)
    for left, right in rows:
        click.echo(f"  {left:<{width}}  {right}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        click.echo(f"  {first:<{widths[0]}}  {'  '.join(cells)}")


def print_notes(notes: Sequence[str]) -> None:
    """What the user must read, on standard error."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


@contextmanager
def progress(what: str, *, quiet: bool) -> Generator[Report]:
    """Bytes, speed, time left and current tensor on a terminal; a plain line now and then
    elsewhere."""
    if quiet:
        yield lambda done, total, tensor: None
    elif sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        yield _lines(what)


def counter(what: str, *, quiet: bool) -> Report:
    """A plain line now and then, with the time left, for things that are counted, not measured in
    bytes."""
    last = started = time.monotonic()
    before, counted = 0, ""

    def report(done: int, total: int, things: str) -> None:
        nonlocal last, started, before, counted
        now = time.monotonic()
        if things != counted or done < before:
            # Other things take another time; what came before the first says nothing of it.
            started, counted, before = now, things, done
        if quiet or now - last < 5:
            return
        last = now
        speed = (done - before) / max(now - started, 1e-9)
        left = f", {(total - done) / speed:.0f} s left" if speed else ""
        with suppress(OSError):
            click.echo(f"{what}: {done} of {total} {things}{left}", err=True)

    return report


@contextmanager
def _bar(what: str) -> Generator[Report]:
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn(what),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[tensor]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=None, tensor="")
    with bar:
        yield lambda done, total, tensor: bar.update(
            task, completed=done, total=total, tensor=tensor
        )


def _lines(what: str) -> Report:
    # From the first tensor on: what came before it (imports, plan) says nothing of the speed.
    started = last = 0.0

    def report(done: int, total: int, tensor: str) -> None:
        nonlocal started, last
        now = time.monotonic()
        started = started or now
        last = last or now
        if now - last < 5 and not (done == total and last > started):
            return
        last = now
        speed = done / max(now - started, 1e-9)
        left = (total - done) / max(speed, 1)
        line = f"{what}: {size(done)} of {size(total)}, {size(int(speed))}/s, {left:.0f} s left"
        # Nobody listening is no reason to stop.
        with suppress(OSError):
            click.echo(f"{line}, {tensor}", err=True)

    return report
