"""What is printed of an output that an engine wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from remerge.artefacts.making_by_engine import EngineResult
from remerge.cli.merge_report import combination, combined_rows
from remerge.cli.output import print_table, size


def engine_document(
    result: EngineResult, labels: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of an output; ``labels`` name its adapters."""
    manifest = result.manifest
    return {
        "output": str(result.output),
        "merge_key": manifest.merge_key,
        "already_there": result.already_there,
        **combination(manifest.recipe, labels),
        "format": manifest.recipe.format,
        "engine": manifest.engine,
        "reproducible": manifest.reproducible,
        "bits_per_weight": manifest.bits_per_weight,
        "tensors": [record.model_dump() for record in manifest.tensors],
        "bytes_written": result.bytes_written,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "versions": manifest.versions,
        "notes": [*notes, *manifest.notes],
        "files": [record.model_dump() for record in manifest.outputs],
    }


def print_engine_made(result: EngineResult, labels: Sequence[str]) -> None:
    """The summary of an output."""
    manifest = result.manifest
    done = "already there" if result.already_there else "written"
    only = result.files[0] if len(result.files) == 1 else result.output
    click.echo(f"{done}: {only}")
    rows = combined_rows(manifest.recipe, labels)
    if manifest.tensors:
        counted = Counter(record.type for record in manifest.tensors)
        types = ", ".join(f"{number} {kind}" for kind, number in counted.most_common())
        rows.append(("tensors", types))
    rows += [
        ("bits per weight", f"{manifest.bits_per_weight:.2f}"),
        ("size", size(sum(record.size for record in manifest.outputs))),
    ]
    if not result.already_there:
        rows += [
            ("seconds", f"{result.seconds:.2f}"),
            ("peak memory", size(result.peak_memory)),
        ]
    if manifest.reproducible != "same-stack":
        rows.append(("reproducible", manifest.reproducible))
    print_table([*rows, ("merge key", manifest.merge_key)])
