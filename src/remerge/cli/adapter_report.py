"""What ``remerge merge --to adapter`` prints: of a plan, and of the adapter that was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from remerge.artefacts.digests import input_digests
from remerge.artefacts.making_adapter import AdapterResult
from remerge.cli.merge_report import combination, combined_rows
from remerge.cli.output import print_table, size
from remerge.merging.adapter_plan import AdapterPlan, plan_adapter
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.combined_adapter import most_bytes

_WORST = 5


def adapter_document(
    result: AdapterResult, labels: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of a new adapter; ``labels`` name those it combines, ``notes`` are those of
    the recipe file."""
    manifest = result.manifest
    return {
        "output": str(result.output),
        "merge_key": manifest.merge_key,
        "already_there": result.already_there,
        **combination(manifest.recipe, labels),
        "exact": manifest.exact,
        "relative_error": manifest.relative_error,
        "tensors": [record.model_dump() for record in manifest.tensors],
        "saved_whole": list(manifest.saved_whole),
        "unchanged": list(manifest.unchanged),
        "reproducible": manifest.reproducible,
        "bytes_written": result.bytes_written,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "notes": [*notes, *manifest.notes],
        "files": [record.model_dump() for record in manifest.outputs],
    }


def print_adapter(result: AdapterResult, labels: Sequence[str], *, verbose: bool) -> None:
    """The summary of a new adapter."""
    manifest = result.manifest
    click.echo(f"{'already there' if result.already_there else 'combined'}: {result.output}")
    ranks = sorted({record.rank for record in manifest.tensors})
    kept = f"{len(manifest.tensors)} with factors, {len(manifest.saved_whole)} whole"
    rows = [*combined_rows(manifest.recipe, labels), ("parameters", kept)]
    if ranks:
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        rows.append(("rank", span))
        exact = "exact but for the factors' rounding: " if manifest.exact else ""
        rows.append(("relative error", f"{exact}{manifest.relative_error:.3g}"))
    worst = sorted(manifest.tensors, key=lambda record: -record.relative_error)
    shown = manifest.tensors if verbose else () if manifest.exact else worst[:_WORST]
    rows += [
        (
            "" if number else ("each" if verbose else "worst"),
            f"{record.relative_error:.3g} at rank {record.rank}: {record.name}",
        )
        for number, record in enumerate(shown)
    ]
    if not result.already_there:
        rows += [
            ("written", size(result.bytes_written)),
            ("seconds", f"{result.seconds:.2f}"),
            ("peak memory", size(result.peak_memory)),
        ]
    print_table([*rows, ("merge key", manifest.merge_key)])


def adapter_plan_document(
    plan: Plan, labels: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of a planned adapter."""
    adapter = plan_adapter(plan)
    return {
        "plan_id": plan.plan_id,
        "merge_key": merge_key(plan, input_digests(plan)),
        **combination(plan.recipe, labels),
        "exact": adapter.exact,
        "tensors": [
            {"name": p.parameter.name, "most_rank": p.rank, "exact": p.exact}
            for p in adapter.products
        ],
        "saved_whole": [whole.parameter.name for whole in adapter.wholes],
        "bytes_to_write": _bytes(adapter),
        "notes": [*notes, *plan.notes],
    }


def print_adapter_plan(plan: Plan, labels: Sequence[str], *, verbose: bool) -> None:
    """The planned adapter for people."""
    adapter = plan_adapter(plan)
    exact = [product for product in adapter.products if product.exact]
    click.echo("plan (nothing written)")
    if verbose:
        for product in adapter.products:
            how = "exact" if product.exact else "nearest"
            click.echo(f"  {product.parameter.name}: {how}, rank {product.rank} at most")
        for whole in adapter.wholes:
            click.echo(f"  {whole.parameter.name}: whole")
    print_table(
        [
            *combined_rows(plan.recipe, labels),
            (
                "parameters",
                f"{len(exact)} with exact factors, {len(adapter.products) - len(exact)} with the "
                f"nearest ones, {len(adapter.wholes)} whole",
            ),
            ("to write", f"{size(_bytes(adapter))} at most"),
            ("plan id", plan.plan_id),
            ("merge key", merge_key(plan, input_digests(plan))),
        ]
    )


def _bytes(adapter: AdapterPlan) -> int:
    return most_bytes(adapter) + adapter.plan.bytes_to_write
