"""``remerge store log``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json, printable


@click.command("log")
@click.argument("target", metavar="[ARTEFACT]", required=False)
@store
@json_output
@quiet
def command(target: str | None, place: str | None, as_json: bool, quiet: bool) -> None:
    """Say what was changed and when, newest first: of one name or artefact, or all."""
    import remerge

    entries = remerge.Store(place).log(target)[::-1]
    if as_json:
        print_json({"log": entries})
        return
    if quiet:
        return
    for entry in entries:
        was = entry.get("was")
        before = f", was {was[:12]}" if was and was != entry["artefact"] else ""
        artefact = entry["artefact"][:12]
        for step, reason in entry.get("skipped", {}).items():
            before += f", WITHOUT {step}: {printable(reason)}"
        click.echo(
            f"{entry['time'][:19]}  {entry['action']:<8} {artefact}  {entry['name']}{before}"
        )
