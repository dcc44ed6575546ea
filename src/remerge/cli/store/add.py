"""``remerge store add``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json, print_notes, print_table, size


@click.command("add")
@click.argument("path", metavar="OUT")
@click.option("--name", help="What to call it; by default after its base and adapters.")
@click.option("--move", is_flag=True, help="Let NAME name this one, if it names another.")
@click.option(
    "--link",
    type=click.Choice(["copy", "hard"]),
    default="copy",
    show_default=True,
    help="hard: share large files with OUT where the file system has no reflinks. They become "
    "read-only, and must not be changed in place.",
)
@store
@json_output
@quiet
def command(
    path: str,
    name: str | None,
    move: bool,
    link: str,
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Keep OUT: what remerge made, an adapter, or a base.

    With a merge come the adapters that it was made of. Every file is held to its manifest on the
    way (exit 4 where it is another). What the store has already is not stored again.

    \b
    remerge store add ./merged
    remerge store add model.gguf --name support-bot-v3
    """
    import remerge

    added = remerge.Store(place).add(
        path, name=name, move=move, link="hard" if link == "hard" else "copy"
    )
    print_notes(() if quiet else added.notes)
    if as_json:
        print_json(
            {
                "id": added.id,
                "name": added.name,
                "kind": added.record.kind,
                "already_there": added.already_there,
                "bytes": added.record.size,
                "bytes_added": added.nbytes,
                "adapters": list(added.adapters),
                "notes": list(added.notes),
            }
        )
    elif not quiet:
        click.echo(f"{'already there' if added.already_there else 'added'}: {added.name}")
        rows = [
            ("kind", added.record.kind),
            ("id", added.id),
            ("size", f"{size(added.record.size)}, of it new {size(added.nbytes)}"),
        ]
        if added.adapters:
            rows.append(("with it", f"{len(added.adapters)} of its adapters"))
        print_table(rows)
