"""``remerge export``."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from remerge.cli.forms import (
    TO,
    form_options,
    is_engine_made,
    refuse_checkpoints_own,
    refuse_prove,
    write_by_engine,
)
from remerge.cli.options import json_output, max_memory, pythons, quiet, threads, verbose
from remerge.cli.output import print_json, print_notes, progress


@click.command("export", short_help="Write a merged checkpoint in another format.")
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", "--out", required=True, metavar="OUT", help="What to write.")
@click.option("--to", default="safetensors", show_default=True, metavar="FORM", help=TO)
@form_options
@click.option(
    "--dtype", default="keep", show_default=True, help="keep, bfloat16, float16 or float32."
)
@click.option("--max-shard-size", metavar="SIZE", help="Cut new shards, e.g. 5GB.")
@click.option("--copy-code", is_flag=True, help="Also carry SOURCE's .py files.")
@click.option("--overwrite", is_flag=True, help="Replace an existing OUT, atomically.")
@threads
@max_memory
@json_output
@quiet
@verbose
def command(
    source: str,
    output: str,
    engine_python: tuple[str, ...],
    prove: bool,
    threads: int | None,
    max_memory: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Write SOURCE, a checkpoint, in the format --to says: one pass, nothing in between.

    SOURCE is a directory or a Hub id, merged by remerge or not. To merge on the way, without ever
    writing the merged checkpoint: remerge merge BASE ADAPTER -o OUT --to FORM.

    \b
    remerge export ./merged -o model.gguf --to gguf:Q4_K_M
    """
    import remerge

    own = pythons(engine_python)
    given = {name for name in click.get_current_context().params if _is_given(name)}
    refuse_prove(options, prove=prove)
    if is_engine_made(options):
        refuse_checkpoints_own(options["to"], given)
        resources = {
            "threads": threads,
            "prove": prove,
            "engine_python": own,
            "progress": not (quiet or as_json),
        }
        asked = {**options, **resources}
        write_by_engine(source, (), output, (), (), asked, as_json=as_json, quiet=quiet)
        return
    from remerge.artefacts.making import MergeResult
    from remerge.cli.merge_report import merged_document, print_merged

    with progress("writing", quiet=quiet or as_json) as report:
        result = remerge.export(
            source, output, threads=threads, max_memory=max_memory, report=report, **options
        )
    assert isinstance(result, MergeResult)
    if as_json:
        print_json(merged_document(result, (), ()))
    elif not quiet:
        print_notes(result.manifest.notes)
        print_merged(result, (), verbose=verbose)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not ParameterSource.DEFAULT
