"""Which modules PEFT adapts, and in which order, where the adapter's tensors do not say."""

from __future__ import annotations

import re
from collections.abc import Collection

from remerge.adapters.config import PeftConfig
from remerge.adapters.edits import Context, Reading
from remerge.adapters.patterns import among
from remerge.errors import Unsupported

_PLAIN = re.compile(r"[\w.]+")


class TargetConfig(PeftConfig):
    """The fields by which PEFT chooses modules."""

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None


def in_order(context: Context, modules: Collection[str]) -> list[str]:
    """These modules in the order in which PEFT meets them. Raises `Unsupported` where only the
    model's class could tell and transformers does not know it."""
    wanted = frozenset(modules)
    found = [module for module in context.names.modules() if module in wanted]
    if len(found) != len(wanted):
        raise Unsupported(
            "What a layer gets of this adapter depends on the order of the model's modules, which "
            "is not known for this base.",
            why=f"{len(wanted) - len(found)} of {len(wanted)} adapted modules are none of a class "
            "of transformers.",
            hint="Load it in PEFT and merge it there with merge_and_unload.",
        )
    return found


def targets(context: Reading[TargetConfig], kinds: Collection[str]) -> list[str]:
    """The modules that PEFT adapts, in its order (tuners_utils.py, check_target_module_exists).

    Raises `Unsupported` for a selection by layer numbers, or one that names modules of another
    kind, and where there is no model to ask.
    """
    config = context.config
    asked = config.target_modules
    if not asked or asked == "all-linear" or config.layers_to_transform is not None:
        raise _unclear("target_modules does not name them, or layers_to_transform is set")
    saved = config.modules_to_save or []
    if not all(_PLAIN.fullmatch(name) for name in saved):
        raise _unclear("modules_to_save holds regular expressions")
    found: list[str] = []
    for module in context.names.modules():
        if not among(module, asked, "target_modules"):
            continue
        if among(module, config.exclude_modules or [], "exclude_modules"):
            continue
        if any(f".{name}." in f".{module}." for name in saved):
            continue
        layer = context.names.layer(module)
        if layer is None or layer.kind not in kinds:
            raise _unclear(f"{module} is none of {', '.join(kinds)}")
        found.append(module)
    if not found:
        raise _unclear("no module of the model is named by target_modules")
    return found


def _unclear(why: str) -> Unsupported:
    return Unsupported(
        "Which modules the adapter changes cannot be told from adapter_config.json.",
        why=f"Its tensors do not name them, and {why}.",
        hint="Load it in PEFT and save it again with its indices (save_indices).",
    )
