"""``remerge report``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet
from remerge.cli.output import print_json, print_table, size


@click.command("report", short_help="Write one page of HTML on what was merged and compared.")
@click.argument("output", metavar="OUT")
@click.option(
    "-o", "--output", "path", metavar="FILE", help="Where to write; OUT-report.html by default."
)
@click.option(
    "--formats",
    metavar="FILE",
    multiple=True,
    help="A table of formats to show, as remerge formats --json writes it; repeatable.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is no report.")
@json_output
@quiet
def command(
    output: str,
    path: str | None,
    formats: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a page on OUT that needs nothing but itself: provenance, weights, scores, formats.

    What is told is read from the manifest and from the comparisons that lie beside OUT; nothing is
    computed again. Needs the extra remerge[report].

    \b
    remerge report ./merged
    remerge report model.gguf -o report.html --formats formats.json
    """
    import remerge

    written = remerge.report(output, path, formats, overwrite=overwrite)
    if as_json:
        document = {
            "report": str(written.path),
            "bytes": written.nbytes,
            "verdict": written.verdict,
        }
        print_json(document)
    elif not quiet:
        click.echo(f"report: {written.path}")
        verdict = written.verdict or "not compared"
        print_table([("verdict", verdict), ("size", size(written.nbytes))])
