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
from remerge.sources.documents import as_object
from remerge.sources.dtypes import MERGEABLE
from remerge.sources.reading import DecodedBase


def read_changes(base: DecodedBase, adapter: Adapter) -> Changes:
    """What the adapter asks for, in terms of the base's tensors as they read unquantised.

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


def plan_tensors(base: DecodedBase, changes: Changes, recipe: Recipe) -> dict[str, TensorPlan]:
    """Every tensor of the output, in the base's order, new ones last.

    Raises `Unsupported` where a delta meets a tensor that is no float.
    """
    plans: dict[str, TensorPlan] = {}
    wanted = None if recipe.dtype == "keep" else recipe.dtype
    for name, source in base.tensors.items():
        if name in changes.dropped:
            continue
        change = changes.tensors.get(name)
        shape = tuple(source.shape) if change is None else change.shape
        kept = source.dtype if change is None else change.dtype
        if change is not None and kept not in MERGEABLE and not _is_counter(change):
            raise _no_float(name, kept)
        plans[name] = TensorPlan(name, output_dtype(kept, wanted), shape, source, change)
    for name, change in changes.tensors.items():
        if name not in plans:
            source = base.tensors.get(change.source or name)
            if change.reads_base and source is None:
                raise BadInput(f"The base has no tensor {name}.")
            dtype = output_dtype(change.dtype, wanted)
            plans[name] = TensorPlan(name, dtype, change.shape, source, change)
    return plans


def _is_counter(change: Change) -> bool:
    """Whether an integer buffer (batch norm's count of batches) is replaced by another."""
    return not change.reads_base and change.dtype in ("I64", "I32", "BOOL")


def _no_float(name: str, dtype: str) -> Unsupported:
    return Unsupported(
        f"Tensor {name} of the base is stored as {dtype}, to which no delta can be added.",
        why="It holds the codes of a format that config.json and its tensors do not explain.",
        hint="Restore the base's own config.json, or merge into its unquantised original.",
    )
