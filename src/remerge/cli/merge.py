"""``remerge merge``."""

from __future__ import annotations

from typing import Any

import click

from remerge.cli.options import device, json_output, max_memory, quiet, threads, verbose
from remerge.cli.output import print_json, print_notes, print_table, progress, size


@click.command("merge")
@click.argument("inputs", metavar="[BASE] ADAPTER", nargs=-1, required=True)
@click.option("-o", "--output", "--out", metavar="OUT", help="Directory to write.")
@click.option(
    "--dtype", default="keep", show_default=True, help="keep, bfloat16, float16 or float32."
)
@click.option("--max-shard-size", metavar="SIZE", help="Cut new shards, e.g. 5GB.")
@click.option(
    "--tokenizer",
    type=click.Choice(["auto", "base", "adapter"]),
    default="auto",
    show_default=True,
    help="Whose tokenizer files to carry; auto takes the adapter's where it brings one.",
)
@click.option("--copy-code", is_flag=True, help="Also carry the base's .py files.")
@click.option("--overwrite", is_flag=True, help="Replace an existing OUT, atomically.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@device
@threads
@max_memory
@json_output
@quiet
@verbose
def command(
    inputs: tuple[str, ...],
    output: str | None,
    dtype: str,
    max_shard_size: str | None,
    tokenizer: str,
    copy_code: bool,
    overwrite: bool,
    dry_run: bool,
    device: str,
    threads: int | None,
    max_memory: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Merge ADAPTER into BASE and write the checkpoint to OUT.

    BASE and ADAPTER are directories or Hub ids (org/name[@revision]); ADAPTER:name picks one of
    several. Without BASE, the adapter's configuration names it.

    \b
    remerge merge meta-llama/Llama-3.1-8B ./adapter -o merged
    remerge merge ./base ./adapter -o merged --dry-run --json
    """
    if len(inputs) == 2:
        base, adapter = inputs
    elif len(inputs) == 1:
        base, adapter = None, inputs[0]
    else:
        raise click.UsageError("One base and one adapter: remerge merge BASE ADAPTER -o OUT.")
    options: dict[str, Any] = {
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "tokenizer": tokenizer,
        "copy_code": copy_code,
        "max_memory": max_memory,
        "progress": not (quiet or as_json),
    }
    if dry_run:
        _dry_run(base, adapter, options, as_json=as_json, quiet=quiet, verbose=verbose)
        return
    if output is None:
        raise click.UsageError("Say where to write: -o OUT (or --dry-run to see the plan).")
    import remerge

    with progress("merging", quiet=quiet or as_json) as report:
        result = remerge.merge(
            base,
            adapter,
            output,
            overwrite=overwrite,
            device=device,
            threads=threads,
            report=report,
            **options,
        )
    manifest = result.manifest
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "merge_key": manifest.merge_key,
                "already_there": result.already_there,
                "resumed": list(result.resumed),
                "tensors": {**manifest.tensors, "refused": 0},
                "bytes_read": result.bytes_read,
                "bytes_written": result.bytes_written,
                "seconds": result.seconds,
                "peak_memory_bytes": result.peak_memory,
                "notes": list(manifest.notes),
                "files": [record.model_dump() for record in manifest.outputs],
            }
        )
        return
    if quiet:
        return
    print_notes(manifest.notes)
    touched, untouched = manifest.tensors["touched"], manifest.tensors["untouched"]
    click.echo(f"{'already merged' if result.already_there else 'merged'}: {result.output}")
    rows = [("tensors", f"{touched} touched, {untouched} untouched, 0 refused")]
    if not result.already_there:
        rows += [
            ("read", size(result.bytes_read)),
            ("written", size(result.bytes_written)),
            ("seconds", f"{result.seconds:.2f}"),
            ("peak memory", size(result.peak_memory)),
        ]
    if result.resumed:
        rows.append(("resumed", ", ".join(result.resumed)))
    rows.append(("merge key", manifest.merge_key))
    print_table(rows)


def _dry_run(
    base: str | None,
    adapter: str,
    options: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    import remerge
    from remerge.adapters.deltas import step_name
    from remerge.artefacts.making import input_digests
    from remerge.merging.budget import forecast
    from remerge.merging.plan import merge_key
    from remerge.merging.recipe import parse_size

    plan = remerge.plan(base, adapter, **options)
    key = merge_key(plan, input_digests(plan))
    relaid = any(file.twin is None for file in plan.files)
    memory = forecast(parse_size(options["max_memory"], "--max-memory"), None, relaid=relaid)
    if as_json:
        print_json(
            {
                "plan_id": plan.plan_id,
                "merge_key": key,
                "reproducible": plan.reproducible,
                "files": plan.document()["files"],
                "side_files": [{"name": s.name, "size": s.size} for s in plan.side_files],
                "tensors": {
                    "touched": len(plan.touched),
                    "untouched": len(plan.tensors) - len(plan.touched),
                },
                "touched": [tensor.name for tensor in plan.touched],
                "bytes_to_read": plan.bytes_to_read,
                "bytes_to_write": plan.bytes_to_write,
                "forecast": {"peak_memory_bytes": memory, "disk_bytes": plan.bytes_to_write},
                "notes": list(plan.notes),
            }
        )
        return
    if quiet:
        return
    print_notes(plan.notes)
    click.echo("plan (nothing written)")
    rows = [
        (
            file.name,
            f"{size(file.size)}, {sum(not p.plan.copied for p in file.pieces)} of "
            f"{len(file.pieces)} tensors change",
        )
        for file in plan.files
    ]
    rows += [(side.name, size(side.size)) for side in plan.side_files]
    print_table(rows)
    if verbose:
        for tensor in plan.touched:
            steps = tensor.change.steps if tensor.change is not None else ()
            click.echo(f"  {tensor.name}: {', '.join(step_name(step) for step in steps)}")
    touched = len(plan.touched)
    print_table(
        [
            ("tensors", f"{touched} touched, {len(plan.tensors) - touched} untouched"),
            ("to read", size(plan.bytes_to_read)),
            ("to write", size(plan.bytes_to_write)),
            ("peak memory", f"{size(memory)} (forecast)"),
            ("plan id", plan.plan_id),
            ("merge key", key),
        ]
    )
