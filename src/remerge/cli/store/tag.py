"""``remerge store tag``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json


@click.command("tag")
@click.argument("target", metavar="ARTEFACT")
@click.argument("name")
@click.option("--move", is_flag=True, help="Let NAME name this one, if it names another.")
@store
@json_output
@quiet
def command(
    target: str, name: str, move: bool, place: str | None, as_json: bool, quiet: bool
) -> None:
    """Give ARTEFACT another name.

    A name that names another artefact is only moved with --move; the log keeps what it named.

    \b
    remerge store tag merged-llama-0e9e39f2-adapter-support-1a2b3c4d production --move
    """
    import remerge

    artefact, was = remerge.Store(place).tag(target, name, move=move)
    if as_json:
        print_json({"id": artefact, "name": name, "was": was})
        return
    if quiet:
        return
    before = f" (was {was[:12]})" if was not in (None, artefact) else ""
    click.echo(f"{name}: {artefact[:12]}{before}")
