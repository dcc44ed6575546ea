"""``remerge store ls``."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json, size

if TYPE_CHECKING:
    from remerge.artefacts.store.index import Row

_KINDS = ("adapter", "base", "merged", "exported")


@click.command("ls")
@click.argument("pattern", default="*")
@click.option("--kind", type=click.Choice(_KINDS), help="Of this kind alone.")
@store
@json_output
@quiet
def command(pattern: str, kind: str | None, place: str | None, as_json: bool, quiet: bool) -> None:
    """List artefacts, oldest first; PATTERN chooses names ('prod-*')."""
    import remerge
    from remerge.artefacts.store.words import status_of

    def said(row: Row) -> str:
        return status_of(collected=row.collected, rebuildable=row.rebuildable, seconds=row.seconds)

    found = [
        row
        for row in remerge.Store(place).ls()
        if kind in (None, row.kind)
        and any(fnmatch.fnmatchcase(name, pattern) for name in row.names or (row.title,))
    ]
    if as_json:
        print_json({"artefacts": [{**asdict(row), "status": said(row)} for row in found]})
        return
    if quiet:
        return
    lines = [
        (
            row.id[:12],
            row.added[:10],
            row.kind,
            size(row.size),
            said(row) + (", pinned" if row.pinned else ""),
            ", ".join(row.names) or f"({row.title})",
        )
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    for *cells, names in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo(f"{padded}  {names}")
