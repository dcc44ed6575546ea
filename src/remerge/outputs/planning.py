"""Making a plan: the names of things resolved, headers read, everything refusable refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.adapters.adapter import Adapter, check_finite, open_adapter
from remerge.errors import BadInput
from remerge.merging.opening import plan_tensors, read_changes
from remerge.merging.plan import Plan, SideFile
from remerge.merging.preparations import check_memory, decomposes
from remerge.merging.recipe import Recipe
from remerge.outputs.safetensors import index_document, lay_out
from remerge.outputs.side_files import side_files
from remerge.sources.checkpoint import Checkpoint, open_checkpoint
from remerge.sources.reading import decoded
from remerge.sources.references import Reference, resolve


@dataclass(frozen=True)
class Inputs:
    """Base and adapter, opened, with where they came from."""

    base: Checkpoint
    base_reference: Reference
    adapter: Adapter
    adapter_reference: Reference
    notes: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        return [self.base.path, self.adapter.path]


def open_inputs(
    base: str | Path | None,
    adapter: str | Path,
    *,
    copy_code: bool = False,
    progress: bool = True,
) -> Inputs:
    """Resolve and open both inputs; without ``base`` the adapter's configuration names it.

    ``progress`` allows the Hub's download bars, which appear on a terminal only.

    Raises `BadInput` when either cannot be found or is damaged, `TryAgain` when the Hub cannot be
    reached.
    """
    adapter_reference = resolve(adapter, "adapter", progress=progress)
    opened = open_adapter(adapter_reference.path.absolute())
    named = opened.config.get("base_model_name_or_path")
    if base is None:
        base = _named_base(opened, named)
    base_reference = resolve(base, "base", copy_code=copy_code, progress=progress)
    notes: tuple[str, ...] = ()
    if (
        base_reference.hub_id is not None
        and isinstance(named, str)
        and named.count("/") == 1
        and not Path(named).exists()
        and named != base_reference.hub_id
    ):
        notes = (
            f"The adapter was trained on {named}, and is merged into {base_reference.hub_id}.",
        )
    return Inputs(
        open_checkpoint(base_reference.path.absolute()),
        base_reference,
        opened,
        adapter_reference,
        notes,
    )


def _named_base(adapter: Adapter, named: Any) -> str:
    if not isinstance(named, str) or not named:
        raise BadInput(
            f"{adapter.path} does not say which base it was trained on.",
            hint="Name it: remerge merge BASE ADAPTER -o OUT.",
        )
    revision = adapter.config.get("revision")
    if isinstance(revision, str) and revision and not Path(named).exists():
        return f"{named}@{revision}"
    return named


def make_plan(inputs: Inputs, recipe: Recipe, max_memory: int) -> Plan:
    """The whole merge from headers and configurations; reads no weight of the base.

    Raises `BadInput` for anything that would merge wrong: leftovers, misfits, values that are not
    finite. Raises `UsageError` when the memory budget is too small for the method.
    """
    base, adapter = inputs.base, inputs.adapter
    readable = decoded(base)
    changes = read_changes(readable, adapter)
    check_finite(adapter)
    tensors = plan_tensors(readable, changes, recipe)
    files = lay_out(base, tensors, recipe.max_shard_size)
    for change in changes.tensors.values():
        check_memory(change, max_memory)
    side, notes = side_files(base, adapter, recipe, changes.config)
    index = index_document(base, files)
    if index is not None:
        side = (*side, SideFile(index[0], content=index[1]))
    return Plan(
        recipe=recipe,
        base=base,
        adapter=adapter,
        config=_merged_config(base.config, side),
        tensors=tensors,
        files=files,
        side_files=tuple(sorted(side, key=lambda file: file.name)),
        notes=(*inputs.notes, *changes.notes, *notes),
        reproducible=(
            "same-stack" if any(map(decomposes, changes.tensors.values())) else "everywhere"
        ),
    )


def _merged_config(config: Mapping[str, Any], side: tuple[SideFile, ...]) -> Mapping[str, Any]:
    written = next((f.content for f in side if f.name == "config.json" and f.content), None)
    return config if written is None else json.loads(written)
