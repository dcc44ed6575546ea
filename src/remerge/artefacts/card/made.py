"""What was made, the same for every kind of output: a checkpoint, what an engine wrote, an adapter
that combines others, one that was extracted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.adapter_manifest import AdapterManifest
from remerge.artefacts.advice import retention_line
from remerge.artefacts.any_manifest import AnyManifest, read_any_manifest
from remerge.artefacts.engine_manifest import EngineManifest, manifest_path
from remerge.artefacts.extraction_manifest import ExtractionManifest
from remerge.artefacts.manifest import FileRecord, InputRecord, Manifest
from remerge.artefacts.records import RunRecord
from remerge.artefacts.reproducing import command_of, named
from remerge.errors import BadInput
from remerge.merging.recipe import Recipe
from remerge.sources.documents import digest_of
from remerge.sources.ggml_types import FILE_TYPES, TYPES

# What the output is called in commands: the same output has the same card wherever it lies.
OUT = "OUT"
_SHOWN = 3
_WHOLE = {"fp32", "fp16", "bf16"}


@dataclass(frozen=True)
class Made:
    """An output as its card tells it.

    ``form`` is the format (``safetensors``, ``gguf``, ``adapter``, ...), ``variant`` what it is
    quantised to, None where it is not; ``identity`` changes with the output's bytes; ``facts`` are
    lines of how it was made, ``command`` makes it again.
    """

    title: str
    is_adapter: bool
    form: str
    variant: str | None
    identity: str
    key: str | None
    base: InputRecord
    adapters: tuple[InputRecord, ...]
    merged: InputRecord | None
    outputs: tuple[FileRecord, ...]
    method: str | None
    facts: tuple[tuple[str, str], ...]
    command: str
    notes: tuple[str, ...]
    version: str


def read_made(output: Path) -> Made:
    """What an output's manifest tells; raises `BadInput` where remerge did not make it."""
    return made_of(_manifest(output))


def made_of(manifest: AnyManifest) -> Made:
    """The same of a manifest at hand."""
    if isinstance(manifest, ExtractionManifest):
        return _extracted(manifest)
    recipe = manifest.recipe
    facts = [*_how(recipe, manifest.adapters)]
    if isinstance(manifest, Manifest) and manifest.retention is not None:
        retained = retention_line(manifest.retention.overall, manifest.retention.measured)
        facts.append(("delta kept", retained))
    elif isinstance(manifest, AdapterManifest):
        error = f"{manifest.relative_error:.2%} of the combined change is missed"
        facts.append(("factors", "exact" if manifest.exact else error))
    elif isinstance(manifest, EngineManifest):
        facts.append(("written by", manifest.engine))
        facts.append(("bits per weight", f"{manifest.bits_per_weight:.2f}"))
    facts.append(("reproducible", manifest.reproducible))
    facts += [
        ("training run", f"{_short(record)}: {_run(record.run)}")
        for record in manifest.adapters
        if record.run is not None
    ]
    return Made(
        title=_title(manifest.base, manifest.adapters, _variant(recipe)),
        is_adapter=isinstance(manifest, AdapterManifest),
        form=recipe.format,
        variant=_variant(recipe),
        identity=_identity(manifest.outputs),
        key=manifest.merge_key,
        base=manifest.base,
        adapters=manifest.adapters,
        merged=None,
        outputs=manifest.outputs,
        method=recipe.method if len(manifest.adapters) > 1 else None,
        facts=tuple(facts),
        command=command_of(recipe, manifest.base, manifest.adapters, OUT),
        notes=manifest.notes,
        version=manifest.versions.get("remerge", ""),
    )


def _manifest(output: Path) -> AnyManifest:
    if not output.exists():
        raise BadInput(f"There is nothing at {output}.", hint="Name what remerge made.")
    path = manifest_path(output)
    if path.is_file():
        return read_any_manifest(path)
    raise BadInput(
        f"{output} has no manifest, {path.name}.",
        why="A card tells what the manifest does; remerge did not make this, or it was moved.",
        hint="Name what remerge merged, exported or extracted.",
    )


def _extracted(manifest: ExtractionManifest) -> Made:
    options = manifest.options
    words = ["remerge", "extract", named(manifest.base), named(manifest.merged), "-o"]
    words += [OUT, "--rank", str(options.rank)]
    words += [] if options.energy is None else ["--energy", str(options.energy)]
    if options.dtype != "F32":
        words += ["--dtype", {"F16": "float16", "BF16": "bfloat16"}[options.dtype]]
    words += [] if options.modules_to_save else ["--no-modules-to-save"]
    words += ["--strict"] if options.strict else []
    return Made(
        title=f"{_short(manifest.merged)} as an adapter of {_short(manifest.base)}",
        is_adapter=True,
        form="adapter",
        variant=None,
        identity=_identity(manifest.outputs),
        key=None,
        base=manifest.base,
        adapters=(),
        merged=manifest.merged,
        outputs=manifest.outputs,
        method=None,
        facts=(
            ("method", "truncated decomposition of the difference of two checkpoints"),
            ("rank", f"at most {options.rank}"),
            ("explained", f"{manifest.explained_energy:.2%} of the squared norm of the difference"),
            ("reproducible", manifest.reproducible),
        ),
        command=shlex.join(words),
        notes=manifest.notes,
        version=manifest.versions.get("remerge", ""),
    )


def _how(recipe: Recipe, adapters: Sequence[InputRecord]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if adapters:
        found.append(("method", recipe.method))
    if any(weight != 1.0 for weight in recipe.weights) and adapters:
        found.append(("weights", ", ".join(f"{weight:g}" for weight in recipe.weights)))
    given = {name: value for name, value in recipe.parameters.items() if value is not None}
    if len(adapters) > 1 and given:
        found.append(("parameters", ", ".join(f"{k} = {v}" for k, v in sorted(given.items()))))
    variant = _variant(recipe)
    found.append(("format", recipe.format if variant is None else f"{recipe.format}, {variant}"))
    if not recipe.form and recipe.quantize is None and recipe.adapter is None:
        found.append(("dtype", "as the base" if recipe.dtype == "keep" else recipe.dtype))
    if recipe.base_precision != "stored":
        found.append(("base taken as", recipe.base_precision))
    return found


def _run(run: RunRecord) -> str:
    """Who names a training run, its id there, and how far it had come."""
    said = run.source if run.id is None else f"{run.source} {run.id}"
    return said if run.step is None else f"{said}, step {run.step}"


def _variant(recipe: Recipe) -> str | None:
    """What the weights are quantised to."""
    if recipe.requantize is not None:
        return "the base's own format"
    if recipe.quantize is not None:
        return recipe.quantize
    form = recipe.form
    if "file_type" in form:
        kind = str(form["file_type"])
        known = FILE_TYPES.get(kind)
        return None if known is not None and TYPES[known.default].block == 1 else kind
    if "precision" in form:
        return None if form["precision"] in _WHOLE else str(form["precision"])
    return f"{form['bits']} bits" if "bits" in form else None


def _identity(outputs: Sequence[FileRecord]) -> str:
    return digest_of({record.name: record.sha256 for record in outputs})


def _title(base: InputRecord, adapters: Sequence[InputRecord], variant: str | None) -> str:
    names = [_short(record) for record in (base, *adapters[:_SHOWN])]
    if len(adapters) > _SHOWN:
        names.append(f"{len(adapters) - _SHOWN} more")
    return " + ".join(names) + ("" if variant is None else f", {variant}")


def _short(record: InputRecord) -> str:
    return (record.subfolder or record.name).rpartition("/")[2] or record.name
