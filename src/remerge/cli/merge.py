"""``remerge merge``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import click

from remerge.cli.methods import given_parameters, method_options, numbers
from remerge.cli.options import device, json_output, max_memory, quiet, threads, verbose
from remerge.cli.output import print_json, print_notes, print_table, progress, size


@click.command("merge")
@click.argument("inputs", metavar="[BASE] ADAPTER...", nargs=-1, required=True)
@click.option("-o", "--output", "--out", metavar="OUT", help="Directory to write.")
@click.option(
    "--method",
    default="sum",
    show_default=True,
    help="How to combine adapters; see docs/several.md.",
)
@click.option(
    "--weights", type=numbers, metavar="NUMBER[,NUMBER...]", help="Of the adapters; 1 each."
)
@method_options
@click.option(
    "--prefer",
    metavar="[PATTERN=]ADAPTER",
    multiple=True,
    help="Where several adapters replace the same tensor, take this one's (name or number).",
)
@click.option(
    "--dtype", default="keep", show_default=True, help="keep, bfloat16, float16 or float32."
)
@click.option(
    "--keep-float32",
    metavar="PATTERN",
    multiple=True,
    help="Write tensors whose names match in float32, e.g. 'model.layers.*.mlp.*'; repeatable.",
)
@click.option(
    "--base-precision",
    metavar="PRECISION",
    help="What a quantised BASE is taken for. dequantized (the default): its own values, which are "
    "what the adapter saw in training, so right for QLoRA. original=ORG/NAME: the 16-bit model it "
    "was made from, right for an adapter that was trained on that one, or where the weights of "
    "other deployments must stay comparable; the adapter then loses the rounding it was fitted to.",
)
@click.option(
    "--simulate",
    type=click.Choice(["nf4"]),
    help="Round a 16-bit BASE through NF4 first, as QLoRA training did on loading it: right where "
    "the adapter was trained with load_in_4bit and only the 16-bit base is at hand.",
)
@click.option(
    "--requantize",
    type=click.Choice(["same"]),
    help="Write a quantised BASE's own format back: block FP8, MXFP4, NVFP4, NF4 or int8. Scales "
    "are derived anew for touched tensors; all others keep their bytes. Small deltas may vanish: "
    "the summary says how much was kept.",
)
@click.option(
    "--expert-packing",
    type=click.Choice(["auto", "rank-major", "expert-major"]),
    default="auto",
    show_default=True,
    help="How lora_B of stacked experts is laid out; auto goes by the adapter's peft_version.",
)
@click.option(
    "--retention",
    type=click.Choice(["sample", "full"]),
    default="sample",
    show_default=True,
    help="Measure what the output keeps of the delta on a sample of each tensor, or on all of it.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Cut new shards, e.g. 5GB.")
@click.option(
    "--tokenizer",
    default="auto",
    show_default=True,
    metavar="auto|base|ADAPTER",
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
    method: str,
    weights: tuple[float, ...] | None,
    prefer: tuple[str, ...],
    dtype: str,
    keep_float32: tuple[str, ...],
    base_precision: str | None,
    simulate: str | None,
    requantize: str | None,
    expert_packing: str,
    retention: Literal["sample", "full"],
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
    **parameters: Any,
) -> None:
    """Merge ADAPTER, or several of them, into BASE and write the checkpoint to OUT.

    BASE and ADAPTER are directories or Hub ids (org/name[@revision]); ADAPTER:name picks one of
    several. Without BASE, the adapter's configuration names it.

    \b
    remerge merge meta-llama/Llama-3.1-8B ./adapter -o merged
    remerge merge ./base ./a ./b -o merged --weights 0.7,0.3 --method ties --density 0.5
    remerge merge ./base ./adapter -o merged --dry-run --json
    """
    base, adapters = (inputs[0], inputs[1:]) if len(inputs) > 1 else (None, inputs)
    options: dict[str, Any] = {
        "method": method,
        "weights": weights,
        "parameters": given_parameters(parameters),
        "prefer": prefer,
        "dtype": dtype,
        "keep_float32": keep_float32,
        "base_precision": base_precision,
        "simulate": simulate,
        "requantize": requantize,
        "expert_packing": expert_packing,
        "max_shard_size": max_shard_size,
        "tokenizer": tokenizer,
        "copy_code": copy_code,
        "max_memory": max_memory,
        "progress": not (quiet or as_json),
    }
    if dry_run:
        _dry_run(base, adapters, options, as_json=as_json, quiet=quiet, verbose=verbose)
        return
    if output is None:
        raise click.UsageError("Say where to write: -o OUT (or --dry-run to see the plan).")
    import remerge
    from remerge.artefacts.advice import advice, retention_line

    with progress("merging", quiet=quiet or as_json) as report:
        result = remerge.merge(
            base,
            adapters,
            output,
            retention=retention,
            overwrite=overwrite,
            device=device,
            threads=threads,
            report=report,
            **options,
        )
    manifest = result.manifest
    kept = manifest.retention
    warnings = advice(manifest)
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
                "base_precision": manifest.recipe.base_precision,
                "formats": manifest.formats,
                "retention": kept.model_dump() if kept is not None else None,
                "notes": [*manifest.notes, *warnings],
                "files": [record.model_dump() for record in manifest.outputs],
            }
        )
        return
    if quiet:
        return
    print_notes((*manifest.notes, *warnings))
    touched, untouched = manifest.tensors["touched"], manifest.tensors["untouched"]
    click.echo(f"{'already merged' if result.already_there else 'merged'}: {result.output}")
    rows = [("tensors", f"{touched} touched, {untouched} untouched, 0 refused")]
    if manifest.formats:
        formats = ", ".join(f"{count} x {name}" for name, count in manifest.formats.items())
        written = "written back" if manifest.recipe.requantize else "decoded"
        rows.append(("quantised base", f"{formats}, {written}"))
    if kept is not None:
        rows.append(("delta kept", retention_line(kept.overall, kept.measured)))
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
    if verbose and kept is not None:
        for name, found in kept.tensors.items():
            click.echo(f"  {name}: {retention_line(found, kept.measured)}")


def _dry_run(
    base: str | None,
    adapters: Sequence[str],
    options: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    import remerge
    from remerge.adapters.deltas import step_name
    from remerge.artefacts.digests import input_digests
    from remerge.merging.budget import forecast
    from remerge.merging.plan import merge_key
    from remerge.merging.recipe import parse_size

    plan = remerge.plan(base, adapters, **options)
    key = merge_key(plan, input_digests(plan))
    budget = parse_size(options["max_memory"], "--max-memory")
    memory = forecast(budget, None, quantised=plan.decodes)
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
                    "untouched": plan.untouched,
                },
                "touched": list(plan.touched),
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
        for name, tensor in plan.touched.items():
            steps = tensor.touched_by.steps if tensor.touched_by is not None else ()
            click.echo(f"  {name}: {', '.join(step_name(step) for step in steps)}")
    touched = len(plan.touched)
    print_table(
        [
            ("tensors", f"{touched} touched, {plan.untouched} untouched"),
            ("to read", size(plan.bytes_to_read)),
            ("to write", size(plan.bytes_to_write)),
            ("peak memory", f"{size(memory)} (forecast)"),
            ("plan id", plan.plan_id),
            ("merge key", key),
        ]
    )
