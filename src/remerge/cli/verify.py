"""``remerge verify``."""

from __future__ import annotations

import click

from remerge.cli.options import (
    device,
    engine_python,
    json_output,
    max_memory,
    pythons,
    quiet,
    threads,
    verbose,
)
from remerge.cli.output import print_json, print_notes, print_table, progress, size


@click.command("verify")
@click.argument("output", metavar="OUT")
@click.option("--base", help="Where the base lies, if it moved.")
@click.option(
    "--adapter", multiple=True, help="Where the adapter lies, if it moved; all of several."
)
@device
@threads
@max_memory
@engine_python
@json_output
@quiet
@verbose
def command(
    output: str,
    base: str | None,
    adapter: tuple[str, ...],
    device: str,
    threads: int | None,
    max_memory: str,
    engine_python: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Derive every file of OUT again from base and adapter and compare bytes.

    Nothing is written. Exit code 4: a file differs from its manifest. 5: the derivation differs.
    """
    import remerge

    with progress("verifying", quiet=quiet or as_json) as report:
        result = remerge.verify(
            output,
            base=base,
            adapter=adapter or None,
            device=device,
            threads=threads,
            max_memory=max_memory,
            engine_python=pythons(engine_python),
            report=report,
        )
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "verified": True,
                "derived": result.derived,
                "merge_key": result.merge_key,
                "files": result.files,
                "tensors": result.tensors,
                "bytes_compared": result.bytes_compared,
            }
        )
    elif not quiet:
        if not result.derived:
            print_notes(result.notes[-1:])
        how = "every byte as derived again" if result.derived else "as their manifest has them"
        click.echo(f"verified: {result.output}")
        print_table(
            [
                ("files", f"{result.files}, {how}"),
                ("bytes", size(result.bytes_compared)),
                ("merge key", result.merge_key),
            ]
        )
        if verbose:
            print_table([("tensors", str(result.tensors))])
