"""``remerge reproduce``."""

from __future__ import annotations

from collections.abc import Sequence

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
from remerge.errors import UsageError


@click.command("reproduce", short_help="Derive an output again from its manifest alone.")
@click.argument("source", metavar="OUT|MANIFEST")
@click.option("-o", "--output", "--out", metavar="NEW", help="Write the artefact there, whole.")
@click.option("--base", help="Where the base lies, if it moved: a directory or Hub id.")
@click.option(
    "--adapter", multiple=True, help="Where the adapter lies, if it moved; all of several."
)
@click.option(
    "--file",
    "files",
    metavar="OPTION=PATH",
    multiple=True,
    help="Where another input lies, if it moved: imatrix=FILE, calibration=FILE.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing NEW, atomically.")
@device
@threads
@max_memory
@engine_python
@json_output
@quiet
@verbose
def command(
    source: str,
    output: str | None,
    base: str | None,
    adapter: tuple[str, ...],
    files: tuple[str, ...],
    overwrite: bool,
    device: str,
    threads: int | None,
    max_memory: str,
    engine_python: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Fetch the inputs that a manifest names, derive every file again and compare digests.

    OUT is an output of remerge; MANIFEST is a remerge.json or FILE.gguf.remerge.json, found
    anywhere. Without -o nothing is written. Exit code 3: it is not known where an input lies. 4: an
    input is not the one of the manifest, or a file of OUT is damaged. 5: a byte differs.

    \b
    remerge reproduce ./merged
    remerge reproduce model.gguf.remerge.json -o model.gguf
    """
    import remerge

    if overwrite and output is None:
        raise UsageError("--overwrite belongs to -o.", hint="Leave it out, or say where to write.")
    with progress("deriving", quiet=quiet or as_json) as report:
        result = remerge.reproduce(
            source,
            output,
            base=base,
            adapter=adapter or None,
            files=_files(files),
            overwrite=overwrite,
            device=device,
            threads=threads,
            max_memory=max_memory,
            engine_python=pythons(engine_python),
            report=report,
            progress=not (quiet or as_json),
        )
    manifest = result.manifest
    if as_json:
        print_json(
            {
                "source": source,
                "reproduced": True,
                "merge_key": result.merge_key,
                "files": result.files,
                "bytes": result.bytes,
                "seconds": round(result.seconds, 3),
                "output": None if result.written is None else str(result.written),
                "damaged": list(result.damaged),
                "outputs": {record.name: record.sha256 for record in manifest.outputs},
            }
        )
    elif not quiet:
        if result.damaged:
            print_notes([f"Damaged in {source}: {', '.join(result.damaged)}."])
        where = f" as {result.written}" if result.written is not None else ""
        click.echo(f"reproduced: {source}{where}")
        print_table(
            [
                ("files", f"{result.files}, every byte as the manifest has it"),
                ("bytes", size(result.bytes)),
                ("seconds", f"{result.seconds:.2f}"),
                ("merge key", result.merge_key),
            ]
        )
        if verbose:
            print_table([(record.name, record.sha256) for record in manifest.outputs])


def _files(given: Sequence[str]) -> dict[str, str]:
    """``--file`` by the option's name; raises `UsageError`."""
    found: dict[str, str] = {}
    for text in given:
        option, _, path = text.partition("=")
        if not option or not path:
            raise UsageError(f"--file {text!r} is no OPTION=PATH.")
        found[option] = path
    return found
