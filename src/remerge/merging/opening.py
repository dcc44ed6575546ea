"""From base, adapter and recipe to a plan: everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.adapters import families, names
from remerge.adapters.adapter import Adapter
from remerge.adapters.deltas import Change, Changes
from remerge.errors import BadInput, Unsupported
from remerge.merging.merged import TensorPlan, output_dtype
from remerge.merging.recipe import Recipe
from remerge.sources.checkpoint import Checkpoint
from remerge.sources.documents import as_object
from remerge.sources.dtypes import MERGEABLE


def read_changes(base: Checkpoint, adapter: Adapter) -> Changes:
    """What the adapter asks for, in terms of the base's tensors.

    Raises `BadInput` when anything of the adapter is left over, missing or of another shape.
    """
    wanted = families.wanted(adapter)
    found = names.find_names(base.config, base.tensors, hint_of(adapter.config), wanted)
    return families.changes(adapter, base, found)


def hint_of(config: Mapping[str, Any]) -> names.ModelHint:
    """Which model class the adapter was trained with, as far as its configuration says."""
    task = config.get("task_type")
    model_class = (as_object(config.get("auto_mapping")) or {}).get("base_model_class")
    return names.ModelHint(
        task if isinstance(task, str) else None,
        model_class if isinstance(model_class, str) else None,
    )


def plan_tensors(base: Checkpoint, changes: Changes, recipe: Recipe) -> dict[str, TensorPlan]:
    """Every tensor of the output, in the base's order, new ones last.

    Raises `Unsupported` where a delta meets a tensor that is no plain float.
    """
    plans: dict[str, TensorPlan] = {}
    wanted = None if recipe.dtype == "keep" else recipe.dtype
    for shard in base.shards:
        for name in shard.header.tensors:
            if name in changes.dropped:
                continue
            stored = base.tensors[name]
            change = changes.tensors.get(name)
            shape = stored.shape if change is None else change.shape
            kept = stored.dtype if change is None else change.dtype
            if change is not None and kept not in MERGEABLE and not _is_counter(change):
                raise _quantised(name, kept, base.config)
            plans[name] = TensorPlan(name, output_dtype(kept, wanted), shape, stored, change)
    for name, change in changes.tensors.items():
        if name not in plans:
            source = base.tensors.get(change.source or name)
            if change.reads_base and source is None:
                raise BadInput(f"The base {base.path} has no tensor {name}.")
            dtype = output_dtype(change.dtype, wanted)
            plans[name] = TensorPlan(name, dtype, change.shape, source, change)
    return plans


def _is_counter(change: Change) -> bool:
    """Whether an integer buffer (batch norm's count of batches) is replaced by another."""
    return not change.reads_base and change.dtype in ("I64", "I32", "BOOL")


def _quantised(name: str, dtype: str, config: Mapping[str, Any]) -> Unsupported:
    method = as_object(config.get("quantization_config"))
    scheme = method.get("quant_method", "unknown") if method is not None else None
    return Unsupported(
        f"Tensor {name} of the base is stored as {dtype}"
        + (f" ({scheme} quantisation)" if scheme else "")
        + ", to which no delta can be added.",
        why="Adding to quantised codes would corrupt them silently.",
        hint="Merge into the unquantised original of this base.",
    )
