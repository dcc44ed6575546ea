"""``remerge inspect``."""

from __future__ import annotations

import dataclasses

import click

from remerge.cli.options import json_output, quiet, verbose
from remerge.cli.output import print_json, print_notes, print_table
from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object


@click.command("inspect")
@click.argument("path")
@click.argument("adapter", required=False)
@json_output
@quiet
@verbose
def command(path: str, adapter: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what PATH is; with ADAPTER, whether it fits the base PATH, naming every misfit.

    Exit code 3 when the adapter does not fit.
    """
    import remerge

    found = remerge.inspect(path, adapter)
    if as_json:
        print_json(dataclasses.asdict(found))
    elif not quiet:
        verdict = {True: "fits", False: "does not fit", None: found.kind}[found.fits]
        click.echo(f"{found.path}: {verdict}")
        print_table([(k, _text(v)) for k, v in found.facts.items() if v not in (None, [], {})])
        for misfit in found.misfits:
            click.echo(f"  misfit: {misfit}")
        if verbose:
            for tensor, steps in found.changed.items():
                click.echo(f"  {tensor}: {', '.join(steps)}")
        print_notes(found.notes)
    if found.fits is False:
        raise click.exceptions.Exit(BadInput.exit_code)


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    items, entries = as_list(value), as_object(value)
    if items is not None:
        return ", ".join(map(str, items))
    if entries is not None:
        return ", ".join(f"{name}: {entry}" for name, entry in entries.items())
    return str(value)
