"""``remerge store materialize``."""

from __future__ import annotations

import click

from remerge.cli.options import (
    device,
    engine_python,
    json_output,
    pythons,
    quiet,
    store,
    threads,
)
from remerge.cli.output import print_json, print_table, progress, size


@click.command("materialize")
@click.argument("target", metavar="ARTEFACT")
@click.option("-o", "--output", "--out", required=True, metavar="DIR", help="Directory to write.")
@click.option(
    "--link",
    type=click.Choice(["copy", "hard"]),
    default="copy",
    show_default=True,
    help="hard: share large files with the store where the file system has no reflinks. They are "
    "read-only, and must not be changed in place.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing DIR, atomically.")
@device
@threads
@engine_python
@store
@json_output
@quiet
def command(
    target: str,
    output: str,
    link: str,
    overwrite: bool,
    device: str,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the files of ARTEFACT to DIR, every one held to its digest.

    What was collected is made again from base and adapters. DIR is complete or as it was.
    """
    import remerge

    with progress("making again", quiet=quiet or as_json) as report:
        made = remerge.Store(place).materialize(
            target,
            output,
            link="hard" if link == "hard" else "copy",
            overwrite=overwrite,
            device=device,
            threads=threads,
            engine_python=pythons(engine_python),
            report=report,
        )
    if as_json:
        print_json(
            {
                "id": made.id,
                "output": str(made.output),
                "files": made.files,
                "bytes": made.nbytes,
                "rebuilt": made.rebuilt,
            }
        )
    elif not quiet:
        click.echo(f"{'made again' if made.rebuilt else 'materialized'}: {made.output}")
        print_table([("files", str(made.files)), ("bytes", size(made.nbytes)), ("id", made.id)])
