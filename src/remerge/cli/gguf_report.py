"""What ``remerge merge --to gguf`` prints of the file that was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from remerge.artefacts.making_gguf import GgufResult
from remerge.cli.merge_report import combination, combined_rows
from remerge.cli.output import print_table, size


def gguf_document(
    result: GgufResult, labels: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of a GGUF file; ``labels`` name its adapters."""
    manifest = result.manifest
    return {
        "output": str(result.output),
        "merge_key": manifest.merge_key,
        "already_there": result.already_there,
        **combination(manifest.recipe, labels),
        "bits_per_weight": manifest.bits_per_weight,
        "tensors": [record.model_dump() for record in manifest.tensors],
        "bytes_written": result.bytes_written,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "notes": [*notes, *manifest.notes],
        "files": [record.model_dump() for record in manifest.outputs],
    }


def print_gguf(result: GgufResult, labels: Sequence[str]) -> None:
    """The summary of a GGUF file."""
    manifest = result.manifest
    done = "already there" if result.already_there else "merged"
    click.echo(f"{done}: {result.output / manifest.outputs[0].name}")
    counted = Counter(record.type for record in manifest.tensors)
    rows = [
        *combined_rows(manifest.recipe, labels),
        ("tensors", ", ".join(f"{number} {kind}" for kind, number in counted.most_common())),
        ("bits per weight", f"{manifest.bits_per_weight:.2f}"),
        ("size", size(manifest.outputs[0].size)),
    ]
    if not result.already_there:
        rows += [
            ("seconds", f"{result.seconds:.2f}"),
            ("peak memory", size(result.peak_memory)),
        ]
    print_table([*rows, ("merge key", manifest.merge_key)])
