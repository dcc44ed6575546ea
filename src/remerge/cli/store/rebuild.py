"""``remerge store rebuild``."""

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


@click.command("rebuild")
@click.argument("target", metavar="ARTEFACT")
@device
@threads
@engine_python
@store
@json_output
@quiet
def command(
    target: str,
    device: str,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Derive ARTEFACT again from base and adapters, and compare every byte with its record.

    That proves that it may be collected; what was collected, lost or damaged comes back. Exit code
    5: a byte differs, and the store is as it was.
    """
    import remerge

    with progress("making again", quiet=quiet or as_json) as report:
        made = remerge.Store(place).rebuild(
            target,
            device=device,
            threads=threads,
            engine_python=pythons(engine_python),
            report=report,
        )
    if as_json:
        print_json(
            {
                "id": made.id,
                "files": made.files,
                "bytes": made.nbytes,
                "seconds": round(made.seconds, 3),
                "restored": list(made.restored),
            }
        )
    elif not quiet:
        click.echo(f"made again: {made.id[:12]}, the same bytes")
        rows = [
            ("files", f"{made.files} ({size(made.nbytes)})"),
            ("seconds", f"{made.seconds:.2f}"),
        ]
        if made.restored:
            rows.append(("put back", ", ".join(made.restored)))
        print_table(rows)
