"""Modules that an adapter names as its targets and yet holds nothing for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from remerge.adapters.edits import Context
from remerge.adapters.keys import Keys
from remerge.adapters.patterns import among

_SHOWN = 3
_FIELDS = ("target", "exclude")


def untouched_note(context: Context, keys: Keys) -> list[str]:
    """A sentence for the user where ``target_modules`` names modules without a tensor: the file may
    have lost them, and families of one tensor a layer leave no other trace of it.

    Nothing where the selection is more than lists: a sentence is not worth a stranger's regular
    expression on every name.
    """
    asked = context.adapter.config
    targets, excluded = (_list(asked.get(f"{which}_modules") or []) for which in _FIELDS)
    adapted = {parts.module for parts in keys.layers if parts.module}
    if targets is None or excluded is None or asked.get("layers_to_transform") is not None:
        return []
    replaced = {name.rpartition(".")[0] for name in keys.parameters} | set(keys.tokens)
    missing = [
        module
        for module in _modules(context)
        if module not in adapted
        and module not in replaced
        and among(module, targets, "target_modules")
        and not among(module, excluded, "exclude_modules")
    ]
    if not missing or not adapted:
        return []
    shown = ", ".join(missing[:_SHOWN]) + (" and others" if len(missing) > _SHOWN else "")
    return [
        f"The adapter has no tensors for {len(missing)} of the {len(missing) + len(adapted)} "
        f"modules of this base that its target_modules names ({shown}); they stay as they are. If "
        "it was trained on them, its file is incomplete."
    ]


def _list(value: object) -> list[str] | None:
    """A selection by names; None for anything else."""
    names = cast("list[Any]", value) if isinstance(value, list) else [None]
    return cast("list[str]", names) if all(isinstance(name, str) for name in names) else None


def _modules(context: Context) -> Collection[str]:
    """The model's modules with a weight or, where no model told the names, the checkpoint's."""
    modules = context.names.modules()
    if modules:
        return [module for module in modules if context.names.shape(f"{module}.weight") is not None]
    ends = ".weight"
    return [name.removesuffix(ends) for name in context.base.tensors if name.endswith(ends)]
