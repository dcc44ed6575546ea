"""What a path is, and whether an adapter fits a base."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter, check_finite, is_adapter, open_adapter
from remerge.adapters.deltas import step_name
from remerge.adapters.families import DoesNotFit
from remerge.artefacts.adapter_manifest import is_combined, read_adapter_manifest
from remerge.artefacts.manifest import MANIFEST, read_manifest
from remerge.errors import BadInput, Unsupported
from remerge.merging.opening import plan_tensors, read_changes
from remerge.merging.recipe import Recipe
from remerge.outputs.planning import open_inputs
from remerge.sources.checkpoint import Checkpoint, open_checkpoint
from remerge.sources.codecs.stated import quantisation_stated
from remerge.sources.reading import decoded
from remerge.sources.references import resolve


@dataclass(frozen=True)
class Inspection:
    """``kind`` is base, adapter, merged or fit; ``facts`` are what to show, in order."""

    kind: str
    path: str
    facts: dict[str, Any]
    fits: bool | None = None
    misfits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changed: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def inspect_path(path: str | Path) -> Inspection:
    """Say what a directory or Hub id is; raises `BadInput` when it is none of ours."""
    local = Path(path).expanduser()
    if local.is_dir() and is_adapter(local) and not (local / "config.json").is_file():
        return _adapter(str(path), open_adapter(local))
    if local.is_dir() and not (local / "config.json").is_file():
        return _adapter(str(path), open_adapter(resolve(str(path), "adapter").path))
    if (local / MANIFEST).is_file():
        manifest = read_manifest(local)
        facts = {
            "base": manifest.base.name,
            "adapters": [record.name for record in manifest.adapters],
            "merge key": manifest.merge_key,
            "reproducible": manifest.reproducible,
            **_base_facts(open_checkpoint(local)),
        }
        return Inspection("merged", str(path), facts, notes=manifest.notes)
    return _remote_or_base(path)


def _remote_or_base(path: str | Path) -> Inspection:
    if Path(path).expanduser().is_dir():
        return Inspection("base", str(path), _base_facts(open_checkpoint(Path(path).expanduser())))
    try:
        found = resolve(str(path), "adapter")
    except BadInput:
        found = resolve(str(path), "base")
        return Inspection("base", str(found), _base_facts(open_checkpoint(found.path)))
    return _adapter(str(found), open_adapter(found.path))


def _adapter(path: str, adapter: Adapter) -> Inspection:
    facts, notes = _adapter_facts(adapter), adapter.notes
    if is_combined(adapter.path):
        manifest = read_adapter_manifest(adapter.path)
        facts |= {
            "combines": [record.name for record in manifest.adapters],
            "method": manifest.recipe.method,
            "weights": list(manifest.recipe.weights),
            "relative error": manifest.relative_error,
            "merge key": manifest.merge_key,
        }
        notes = (*notes, *manifest.notes)
    return Inspection("adapter", path, facts, notes=notes)


def inspect_adapter(base: str | Path, adapter: str | Path) -> Inspection:
    """Whether the adapter can be merged into the base, and which tensors would change."""
    inputs = open_inputs(base, [adapter])
    opened = inputs.adapters[0]
    try:
        readable = decoded(inputs.base)
        opened = opened.for_base(readable)
        changes = read_changes(readable, opened)
        check_finite(opened)
        plans = plan_tensors(inputs.base, readable, changes, Recipe())
    except BadInput as error:
        misfits = (str(error),)
        if isinstance(error, DoesNotFit):
            misfits = tuple(f"{misfit.tensor}: {misfit.problem}" for misfit in error.misfits)
        return Inspection("fit", str(adapter), _adapter_facts(opened), False, misfits)
    changed = {
        name: [step_name(step) for step in plan.change.steps]
        for name, plan in plans.items()
        if plan.change is not None
    }
    facts = {
        **_adapter_facts(opened),
        "touched tensors": len(changed),
        "untouched tensors": len(plans) - len(changed),
    }
    notes = tuple(dict.fromkeys((*inputs.notes, *opened.notes, *changes.notes)))
    return Inspection("fit", str(adapter), facts, True, (), notes, changed)


def _base_facts(base: Checkpoint) -> dict[str, Any]:
    dtypes = Counter(tensor.dtype for tensor in base.tensors.values())
    try:
        readable = decoded(base)
        formats = dict(Counter(codec.format for codec in readable.codecs.values()))
        parameters = sum(math.prod(tensor.shape) for tensor in readable.tensors.values())
    except Unsupported:
        formats = {str(quantisation_stated(base.config).get("quant_method")): 0}
        parameters = sum(math.prod(tensor.shape) for tensor in base.tensors.values())
    return {
        "model type": base.config.get("model_type"),
        "architectures": base.config.get("architectures"),
        "quantised": formats,
        "shards": len(base.shards),
        "tensors": len(base.tensors),
        "parameters": parameters,
        "bytes": sum(shard.size for shard in base.shards),
        "dtypes": dict(sorted(dtypes.items())),
        "side files": list(base.side_files),
        "left out": list(base.left_out),
    }


def _adapter_facts(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    return {
        "format": adapter.trainer,
        "peft type": config.get("peft_type"),
        "base named": config.get("base_model_name_or_path"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "task type": config.get("task_type"),
        "peft version": config.get("peft_version"),
        "tensors": len(adapter.tensors),
        "bytes": adapter.nbytes,
        "dtypes": dict(sorted(Counter(t.dtype for t in adapter.tensors.values()).items())),
    }
