"""``remerge store reindex``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json


@click.command("reindex")
@store
@json_output
@quiet
def command(place: str | None, as_json: bool, quiet: bool) -> None:
    """Make the index again from the records and names that it is about."""
    import remerge

    count = remerge.Store(place).reindex()
    if as_json:
        print_json({"artefacts": count})
        return
    if quiet:
        return
    click.echo(f"artefacts: {count}")
