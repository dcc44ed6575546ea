"""From base, adapter and recipe to a plan: everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from remerge.adapters import families, names
from remerge.adapters.adapter import Adapter
from remerge.adapters.deltas import Change, Changes
from remerge.errors import BadInput, Unsupported, UsageError
from remerge.merging.recipe import Recipe
from remerge.merging.tensor_plan import Encoding, TensorPlan, output_dtype
from remerge.sources.checkpoint import Checkpoint, StoredTensor
from remerge.sources.codecs.codec import Codec, Encodes
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


def plan_tensors(
    base: Checkpoint, readable: DecodedBase, changes: Changes, recipe: Recipe
) -> dict[str, TensorPlan]:
    """Every tensor of the output, in the base's order, new ones last.

    Raises `Unsupported` where a delta meets a tensor that is no float, or one whose format cannot
    be written back.
    """
    keeps = recipe.requantize is not None
    plans: dict[str, TensorPlan] = {}
    if keeps:
        for codec in readable.codecs.values():
            if codec.name not in changes.dropped:
                plans.update(_part_plans(codec, changes.tensors.get(codec.name)))
    for name, source in readable.tensors.items():
        if name in changes.dropped or (keeps and name in readable.codecs):
            continue
        change = changes.tensors.get(name)
        shape = tuple(source.shape) if change is None else change.shape
        kept = source.dtype if change is None else change.dtype
        if change is not None and kept not in MERGEABLE and not _is_counter(change):
            raise _no_float(name, kept)
        packed = not isinstance(source, StoredTensor)
        dtype = asked_dtype(recipe, base.config, name, kept, packed=packed)
        plans[name] = TensorPlan(name, dtype, shape, source, change)
    for name, change in changes.tensors.items():
        if name not in plans and not (keeps and name in readable.codecs):
            source = readable.tensors.get(change.source or name)
            if change.reads_base and source is None:
                raise BadInput(f"The base {base.path} has no tensor {name}.")
            dtype = asked_dtype(recipe, base.config, name, change.dtype)
            plans[name] = TensorPlan(name, dtype, change.shape, source, change)
    _check_patterns(recipe, plans)
    stored = {name: plans[name] for name in base.tensors if name in plans}
    return stored | plans if keeps else plans


def _part_plans(codec: Codec, change: Change | None) -> dict[str, TensorPlan]:
    """The parts of a quantised tensor in their own format: copied, or encoded anew."""
    if change is not None and (not isinstance(codec, Encodes) or change.shape != codec.shape):
        raise Unsupported(
            f"Tensor {codec.name} is stored as {codec.format}, which --requantize cannot write"
            + ("." if not isinstance(codec, Encodes) else f" in its new shape {change.shape}."),
            why="Formats that it writes: NF4 and FP4, int8, block FP8, MXFP4 and NVFP4.",
            hint="Merge without --requantize, and quantise the result.",
        )
    rewritten = codec.rewritten if isinstance(codec, Encodes) else frozenset[str]()
    return {
        part.name: TensorPlan(
            part.name,
            part.dtype,
            part.shape,
            part,
            None,
            Encoding(codec, role, change, codec)
            if change is not None and role in rewritten
            else None,
        )
        for role, part in codec.parts.items()
    }


def asked_dtype(
    recipe: Recipe, config: Mapping[str, Any], name: str, kept: str, *, packed: bool = False
) -> str:
    """A tensor's dtype in the output, from the one it has; ``packed``: decoded from codes."""
    if packed:
        kept = _unpacked_dtype(kept, config)
    if any(fnmatchcase(name, pattern) for pattern in recipe.keep_float32):
        return output_dtype(kept, "F32")
    return output_dtype(kept, None if recipe.dtype == "keep" else recipe.dtype)


def _unpacked_dtype(decoded: str, config: Mapping[str, Any]) -> str:
    """The dtype of a decoded tensor in the output: 16 bits, those of config.json if it has any."""
    if decoded != "F32":
        return decoded
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return "F16" if stated == "float16" else "BF16"


def _check_patterns(recipe: Recipe, plans: Mapping[str, TensorPlan]) -> None:
    for pattern in recipe.keep_float32:
        if not any(fnmatchcase(name, pattern) for name in plans):
            raise UsageError(
                f"--keep-float32 {pattern!r} matches no tensor of the output.",
                hint="Give a tensor's name, or a pattern such as 'model.layers.*.mlp.*'.",
            )


def _is_counter(change: Change) -> bool:
    """Whether an integer buffer (batch norm's count of batches) is replaced by another."""
    return not change.reads_base and change.dtype in ("I64", "I32", "BOOL")


def _no_float(name: str, dtype: str) -> Unsupported:
    return Unsupported(
        f"Tensor {name} of the base is stored as {dtype}, to which no delta can be added.",
        why="It holds the codes of a format that config.json and its tensors do not explain.",
        hint="Restore the base's own config.json, or merge into its unquantised original.",
    )
