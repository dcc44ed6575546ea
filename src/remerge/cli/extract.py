"""``remerge extract``."""

from __future__ import annotations

from typing import Any

import click

from remerge.cli.options import json_output, max_memory, quiet, threads, verbose
from remerge.cli.output import print_json, print_notes, print_table, progress, size

_WORST = 5


@click.command("extract")
@click.argument("base")
@click.argument("merged")
@click.option("-o", "--output", "--out", metavar="ADAPTER", required=True, help="Where to write.")
@click.option("--rank", type=int, help="The most that a tensor may take.")
@click.option(
    "--energy",
    type=float,
    metavar="SHARE",
    help="Take the smallest rank of each tensor that explains this share of its change, e.g. 0.99.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    help="Of the factors: bfloat16, float16 or float32.",
)
@click.option(
    "--no-modules-to-save",
    is_flag=True,
    help="Leave out what factors cannot say (norms, biases, new tokens).",
)
@click.option("--strict", is_flag=True, help="Refuse what factors cannot say.")
@click.option("--overwrite", is_flag=True, help="Replace an existing ADAPTER, atomically.")
@threads
@max_memory
@json_output
@quiet
@verbose
def command(
    base: str,
    merged: str,
    output: str,
    rank: int | None,
    energy: float | None,
    dtype: str,
    no_modules_to_save: bool,
    strict: bool,
    overwrite: bool,
    threads: int | None,
    max_memory: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Find the low-rank adapter that leads from BASE to MERGED and write it for PEFT.

    BASE and MERGED are directories or Hub ids (org/name[@revision]) of one architecture.

    \b
    remerge extract meta-llama/Llama-3.1-8B ./merged --rank 16 -o adapter
    remerge extract ./base ./merged --energy 0.99 --rank 128 -o adapter
    """
    import remerge

    with progress("extracting", quiet=quiet or as_json) as report:
        result = remerge.extract(
            base,
            merged,
            output,
            rank=rank,
            energy=energy,
            dtype=dtype,
            modules_to_save=not no_modules_to_save,
            strict=strict,
            overwrite=overwrite,
            threads=threads,
            max_memory=max_memory,
            report=report,
            progress=not (quiet or as_json),
        )
    manifest = result.manifest
    if as_json:
        document: dict[str, Any] = {
            "output": str(result.output),
            "explained_energy": manifest.explained_energy,
            "tensors": [record.model_dump() for record in manifest.tensors],
            "saved_whole": list(manifest.saved_whole),
            "left_out": list(manifest.left_out),
            "unchanged": manifest.unchanged,
            "bytes_compared": result.bytes_compared,
            "bytes_written": result.bytes_written,
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory,
            "notes": list(manifest.notes),
            "files": [record.model_dump() for record in manifest.outputs],
        }
        print_json(document)
        return
    if quiet:
        return
    print_notes(manifest.notes)
    click.echo(f"extracted: {result.output}")
    worst = sorted(manifest.tensors, key=lambda record: record.explained_energy)
    shown = manifest.tensors if verbose else worst[:_WORST]
    print_table(
        [
            (
                "tensors",
                f"{len(manifest.tensors)} with factors, {len(manifest.saved_whole)} whole, "
                f"{len(manifest.left_out)} left out, {manifest.unchanged} unchanged",
            ),
            ("explained", f"{manifest.explained_energy:.6f} of the change's energy"),
            *(
                (
                    "" if number else ("each" if verbose else "worst"),
                    f"{record.explained_energy:.6f} at rank {record.rank}: {record.name}",
                )
                for number, record in enumerate(shown)
            ),
            ("compared", size(result.bytes_compared)),
            ("written", size(result.bytes_written)),
            ("seconds", f"{result.seconds:.2f}"),
            ("peak memory", size(result.peak_memory)),
        ]
    )
