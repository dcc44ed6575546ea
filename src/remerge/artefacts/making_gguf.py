"""Making a GGUF file straight from base and adapters: no checkpoint lies between.

The work is done in llama.cpp's environment (engines/convert_gguf.py), which opens the same merge
and writes the file into the workplace; here it is planned, recorded and published.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from remerge.artefacts.digests import file_digest, input_digests
from remerge.artefacts.gguf_manifest import (
    GgufManifest,
    TensorRecord,
    is_gguf,
    read_gguf_manifest,
)
from remerge.artefacts.making import Report, remember, write_side_file
from remerge.artefacts.manifest import MANIFEST, FileRecord, to_bytes
from remerge.artefacts.recording import adapter_records, file_record, input_name, input_record
from remerge.engines.calling import call
from remerge.engines.environments import python_of
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.errors import BadInput
from remerge.merging.budget import peak_memory
from remerge.merging.plan import Plan, merge_key
from remerge.outputs.directory import (
    check_free,
    check_place,
    check_space,
    publish,
    sweep,
    workplace,
    write_durably,
)
from remerge.outputs.planning import Inputs
from remerge.sources.ggml_types import FILE_TYPES, TYPES
from remerge.version import ALGORITHM, __version__

_MODULE = "remerge.engines.convert_gguf"


@dataclass(frozen=True)
class GgufResult:
    """What the making of a GGUF file did: the numbers of the closing summary, all measured."""

    output: Path
    manifest: GgufManifest
    seconds: float
    bytes_written: int
    peak_memory: int
    already_there: bool = False


@dataclass(frozen=True)
class About:
    """What the file says of itself."""

    base: str
    adapters: tuple[str, ...]
    merge_key: str


def convert(
    inputs: Inputs,
    plan: Plan,
    about: About,
    work: Path,
    file: Path | None,
    threads: int | None,
    pythons: Mapping[str, str],
    report: Report,
) -> dict[str, Any]:
    """Have ``file`` written, or with None only its digest taken, in llama.cpp's environment.

    The engine's process opens the same inputs and makes the same plan; configuration and tokenizer
    lie in ``work`` meanwhile.
    """
    python = python_of(LLAMA_CPP, pythons)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=work) as folder:
        # The converter reads the model's name, size and kind off its directory's name.
        directory = Path(folder) / (about.base.rpartition("/")[2] or "model")
        directory.mkdir()
        for side in plan.side_files:
            write_side_file(directory, side)
        request = {
            "base": str(inputs.base.path),
            "original": inputs.original,
            "adapters": [str(adapter.path) for adapter in inputs.adapters],
            "recipe": plan.recipe.model_dump(mode="json"),
            "plan_id": plan.plan_id,
            "directory": str(directory),
            "file": os.devnull if file is None else str(file),
            "threads": threads,
            "about": asdict(about),
        }
        return call(python, _MODULE, request, report)


def key_of(plan: Plan, digests: Mapping[str, str], base: str, adapters: Sequence[str]) -> str:
    """The merge key of a GGUF file: the converter and the quantiser are inputs as well, and the
    names of base and adapters, which it holds."""
    named = {"name/base": base, **{f"name/adapter/{i}": n for i, n in enumerate(adapters, 1)}}
    return merge_key(plan, {**digests, **named, f"engine/{LLAMA_CPP.name}": LLAMA_CPP.identity})


def make_gguf(
    inputs: Inputs,
    plan: Plan,
    out: Path,
    *,
    threads: int | None,
    pythons: Mapping[str, str],
    started: float,
    overwrite: bool = False,
    report: Report = lambda done, total, tensor: None,
) -> GgufResult:
    """Write the planned merge to ``out`` as one GGUF file, or leave ``out`` as it was.

    Raises `UsageError` for an output that is in the way and where llama.cpp's environment is
    missing, `Unsupported` for a model or tokenizer that its converter does not know.
    """
    form = plan.recipe.gguf
    assert form is not None
    check_place(out, inputs.paths)
    python_of(LLAMA_CPP, pythons)
    read = input_digests(plan)
    base = input_name(inputs.base_reference)
    adapters = tuple(input_name(reference) for reference in inputs.adapter_references)
    key = key_of(plan, read, base, adapters)
    done = _already_there(out, key)
    if done is not None:
        sweep(out)
        return GgufResult(out, done, time.time() - started, 0, peak_memory(), True)
    check_free(out, overwrite=overwrite)
    # About: some tensors get other types. Where that is too little, the disk itself says so.
    wide, kind = 4 if plan.recipe.dtype == "F32" else 2, TYPES[FILE_TYPES[form.file_type].default]
    check_space(out, plan.bytes_to_write * kind.row_bytes(256) // (256 * wide))
    name = f"{out.resolve().name}-{form.file_type}.gguf"
    with workplace(out, {"gguf": __version__, "started": started}) as place:
        target = place.work / name
        about = About(base, adapters, key)
        told = convert(inputs, plan, about, place.work, target, threads, pythons, report)
        if any(a.changed() for a in plan.adapters) or input_digests(plan) != read:
            raise BadInput("An input changed while it was merged.")
        record = FileRecord(name=name, size=told["size"], sha256=told["sha256"])
        manifest = _manifest(inputs, plan, read, key, record, told)
        write_durably(place.work / MANIFEST, to_bytes(manifest))
        publish(place)
    remember(plan, manifest.base, manifest.adapters)
    peak = max(peak_memory(), told["peak_memory"])
    return GgufResult(out, manifest, time.time() - started, record.size, peak)


def _already_there(out: Path, key: str) -> GgufManifest | None:
    """The manifest of ``out`` when this very file is complete there, its digest checked."""
    if not is_gguf(out):
        return None
    try:
        manifest = read_gguf_manifest(out)
    except BadInput:
        return None
    whole = all(
        (out / record.name).is_file() and file_digest(out / record.name) == record.sha256
        for record in manifest.outputs
    )
    return manifest if whole and manifest.merge_key == key else None


def _manifest(
    inputs: Inputs,
    plan: Plan,
    digests: Mapping[str, str],
    key: str,
    record: FileRecord,
    told: Mapping[str, Any],
) -> GgufManifest:
    base_files = [
        FileRecord(name=s.name, size=s.size, sha256=digests[f"base/{s.name}"])
        for s in plan.base.shards
    ]
    base_files.append(file_record(plan.base.path / "config.json", "config.json"))
    tensors = tuple(
        TensorRecord(name=name, shape=tuple(shape), type=kind)
        for name, shape, kind in told["tensors"]
    )
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return GgufManifest(
        merge_key=key,
        plan_id=plan.plan_id,
        recipe=plan.recipe,
        reproducible="same-stack",
        base=input_record(inputs.base_reference, base_files),
        adapters=adapter_records(inputs, plan, digests),
        outputs=(record,),
        tensors=tensors,
        bits_per_weight=round(8 * record.size / weights, 3),
        notes=(*plan.notes, *told["notes"]),
        versions={
            "remerge": __version__,
            "algorithm": str(ALGORITHM),
            "torch": torch.__version__,
            **told["versions"],
        },
    )
