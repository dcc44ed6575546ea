"""What ``remerge merge`` prints: of a plan, and of what was merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from remerge.adapters.deltas import step_name
from remerge.artefacts.advice import advice, conflict_line, retention_line
from remerge.artefacts.digests import input_digests
from remerge.artefacts.making import MergeResult
from remerge.cli.output import print_notes, print_table, size
from remerge.merging.budget import forecast
from remerge.merging.plan import Plan, merge_key
from remerge.merging.recipe import Recipe, parse_size


def merged_document(
    result: MergeResult, labels: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of a merge; ``labels`` name its adapters, ``notes`` are those of its recipe
    file."""
    manifest = result.manifest
    kept = manifest.retention
    return {
        "output": str(result.output),
        "merge_key": manifest.merge_key,
        "already_there": result.already_there,
        "resumed": list(result.resumed),
        **combination(manifest.recipe, labels),
        "tensors": {**manifest.tensors, "refused": 0},
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "base_precision": manifest.recipe.base_precision,
        "formats": manifest.formats,
        "quantize": manifest.recipe.quantize,
        "written": manifest.written,
        "retention": kept.model_dump() if kept is not None else None,
        "conflicts": manifest.conflicts.model_dump() if manifest.conflicts is not None else None,
        "notes": [*notes, *manifest.notes, *advice(manifest)],
        "files": [record.model_dump() for record in manifest.outputs],
    }


def print_merged(result: MergeResult, labels: Sequence[str], *, verbose: bool) -> None:
    """The summary of a merge, its notes on standard error."""
    manifest = result.manifest
    kept = manifest.retention
    print_notes((*manifest.notes, *advice(manifest)))
    touched, untouched = manifest.tensors["touched"], manifest.tensors["untouched"]
    click.echo(f"{'already merged' if result.already_there else 'merged'}: {result.output}")
    rows = combined_rows(manifest.recipe, labels)
    if manifest.conflicts is not None:
        rows.append(("get along", conflict_line(manifest.conflicts, labels)))
    rows.append(("tensors", f"{touched} touched, {untouched} untouched, 0 refused"))
    if manifest.formats:
        formats = ", ".join(f"{count} x {name}" for name, count in manifest.formats.items())
        written = "written back" if manifest.recipe.requantize else "decoded"
        rows.append(("quantised base", f"{formats}, {written}"))
    if manifest.written:
        formats = ", ".join(f"{count} x {name}" for name, count in manifest.written.items())
        rows.append(("quantised", formats))
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


def plan_document(
    plan: Plan, labels: Sequence[str], notes: Sequence[str], max_memory: str
) -> dict[str, Any]:
    """The JSON document of a plan; ``labels`` and ``notes`` as of a merge."""
    return {
        "plan_id": plan.plan_id,
        # That of what an engine writes also names the engine and what the output says of itself.
        "merge_key": None if plan.recipe.form else _key(plan),
        "reproducible": plan.reproducible,
        **combination(plan.recipe, labels),
        "files": plan.document()["files"],
        "side_files": [{"name": s.name, "size": s.size} for s in plan.side_files],
        "tensors": {"touched": len(plan.touched), "untouched": plan.untouched},
        "touched": list(plan.touched),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
        "forecast": {
            "peak_memory_bytes": _memory(plan, max_memory),
            "disk_bytes": plan.bytes_to_write,
        },
        "notes": [*notes, *plan.notes],
    }


def print_plan(plan: Plan, labels: Sequence[str], max_memory: str, *, verbose: bool) -> None:
    """The plan for people."""
    click.echo("plan (nothing written)")
    if plan.recipe.form:
        # Which tensors it has, only the engine can tell.
        most = f"less than {size(plan.bytes_to_write)}, from {len(plan.tensors)} tensors"
        _print_rest(plan, labels, [(plan.recipe.format, most)], max_memory, verbose)
        return
    rows = [
        (
            file.name,
            f"{size(file.size)}, {sum(not p.plan.copied for p in file.pieces)} of "
            f"{len(file.pieces)} tensors change",
        )
        for file in plan.files
    ]
    rows += [(side.name, size(side.size)) for side in plan.side_files]
    _print_rest(plan, labels, rows, max_memory, verbose)


def _print_rest(
    plan: Plan,
    labels: Sequence[str],
    files: Sequence[tuple[str, str]],
    max_memory: str,
    verbose: bool,
) -> None:
    print_table(files)
    if verbose:
        for name, tensor in plan.touched.items():
            steps = tensor.touched_by.steps if tensor.touched_by is not None else ()
            click.echo(f"  {name}: {', '.join(step_name(step) for step in steps)}")
    print_table(
        [
            *combined_rows(plan.recipe, labels),
            ("tensors", f"{len(plan.touched)} touched, {plan.untouched} untouched"),
            ("to read", size(plan.bytes_to_read)),
            *([("to write", size(plan.bytes_to_write))] if not plan.recipe.form else []),
            ("peak memory", f"{size(_memory(plan, max_memory))} (forecast)"),
            ("plan id", plan.plan_id),
            *([("merge key", _key(plan))] if not plan.recipe.form else []),
        ]
    )


def _key(plan: Plan) -> str:
    return merge_key(plan, input_digests(plan))


def _memory(plan: Plan, max_memory: str) -> int:
    budget = parse_size(max_memory, "--max-memory")
    return forecast(budget, None, quantised=plan.decodes, combines=plan.combines)


def combination(recipe: Recipe, labels: Sequence[str]) -> dict[str, Any]:
    """How adapters were combined, for a JSON document."""
    return {
        "method": recipe.method,
        "parameters": recipe.parameters,
        "adapters": list(labels),
        "weights": list(recipe.weights),
    }


def combined_rows(recipe: Recipe, labels: Sequence[str]) -> list[tuple[str, str]]:
    """How adapters were combined, where there is something to say."""
    if recipe.weights in ((), (1.0,)) and recipe.method == "sum":
        return []
    weighed = zip(recipe.weights, labels, strict=True)
    said = [f"{key} {_shown(value)}" for key, value in recipe.parameters.items()]
    return [
        ("adapters", ", ".join(f"{weight:g} x {label}" for weight, label in weighed)),
        ("method", ", ".join([recipe.method, *said])),
    ]


def _shown(value: Any) -> str:
    """A parameter in few words: one number where all adapters have the same."""
    if isinstance(value, list):
        numbers = [f"{number:g}" for number in value]  # pyright: ignore[reportUnknownVariableType]
        return numbers[0] if len(set(numbers)) == 1 else "/".join(numbers)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
