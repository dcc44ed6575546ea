"""``remerge card``."""

from __future__ import annotations

import json
from typing import Any, cast

import click

from remerge.cli.options import json_output, quiet
from remerge.cli.output import print_json, print_table


@click.command("card", short_help="Write or update the model card, README.md, of an output.")
@click.argument("output", metavar="OUT")
@click.option(
    "-o", "--output", "path", metavar="FILE", help="Where to write; OUT/README.md by default."
)
@json_output
@quiet
def command(output: str, path: str | None, as_json: bool, quiet: bool) -> None:
    """Write what OUT was made from, how to load it and make it again, and how it scored, as a card
    that the Hub understands. Every output directory has one from the start; this brings it up to
    date.

    Your own text, and metadata that you added or changed, stay as they are.

    \b
    remerge card ./merged
    remerge card model.gguf -o README.md
    """
    import remerge

    written = remerge.card(output, path)
    if as_json:
        document = {
            "card": str(written.path),
            "changed": written.changed,
            # What a user wrote there may be a date.
            "metadata": json.loads(json.dumps(written.metadata, default=str)),
        }
        print_json(document)
    elif not quiet:
        click.echo(f"card: {written.path}")
        base: Any = written.metadata.get("base_model", "not known on the Hub")
        ids = cast("list[Any]", base) if isinstance(base, list) else [base]
        rows = [
            ("base model", ", ".join(map(str, ids))),
            ("licence", str(written.metadata.get("license", "not stated"))),
            ("changed", "yes" if written.changed else "no, it was up to date"),
        ]
        print_table(rows)
