"""``remerge store pin``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json


@click.command("pin")
@click.argument("target", metavar="ARTEFACT")
@click.option("--remove", is_flag=True, help="Let go of it again.")
@store
@json_output
@quiet
def command(target: str, remove: bool, place: str | None, as_json: bool, quiet: bool) -> None:
    """Keep the bytes of ARTEFACT: no gc collects what is pinned."""
    import remerge

    artefact = remerge.Store(place).pin(target, pinned=not remove)
    if as_json:
        print_json({"id": artefact, "pinned": not remove})
        return
    if quiet:
        return
    click.echo(f"{'no longer pinned' if remove else 'pinned'}: {artefact[:12]}")
