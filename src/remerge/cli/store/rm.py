"""``remerge store rm``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json


@click.command("rm")
@click.argument("name")
@store
@json_output
@quiet
def command(name: str, place: str | None, as_json: bool, quiet: bool) -> None:
    """Take NAME away from its artefact, which stays.

    Its bytes go with remerge store gc. The last name of an adapter or a base cannot be taken away:
    they are what everything else is made from.
    """
    import remerge

    artefact = remerge.Store(place).rm(name)
    if as_json:
        print_json({"id": artefact, "name": name})
        return
    if quiet:
        return
    click.echo(f"removed: {name} (it was {artefact[:12]})")
