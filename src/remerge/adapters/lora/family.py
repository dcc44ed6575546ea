"""LoRA adapters of PEFT: from adapter_config.json and keys to changes of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from remerge.adapters.deltas import Changes
from remerge.adapters.lora.assembly import assemble
from remerge.adapters.lora.config import LoraConfig, read_config
from remerge.adapters.lora.edits import Context, Edit
from remerge.adapters.lora.factors import recent_reader
from remerge.adapters.lora.facts import AdapterFacts, BaseFacts, LoraShapes, Wanted
from remerge.adapters.lora.heads import head_change
from remerge.adapters.lora.keys import Keys, Parts, sort_keys
from remerge.adapters.lora.layers import layer_edits
from remerge.adapters.lora.misfits import Misfits
from remerge.adapters.lora.refusals import refuse_variants
from remerge.adapters.lora.saved import unlisted, wholes
from remerge.adapters.lora.tokens import token_edits
from remerge.adapters.lora.tying import slots
from remerge.adapters.lora.vocabulary import resized_config
from remerge.adapters.regions import Names
from remerge.errors import BadInput

_SHOWN = 3


def changes(adapter: AdapterFacts, base: BaseFacts, names: Names) -> Changes:
    """What a LoRA adapter asks of this base, from headers and configurations alone.

    Raises `DoesNotFit` listing every adapter tensor without its place, `Unsupported` for kinds that
    cannot be merged, `BadInput` for a broken configuration.
    """
    config = _checked_config(adapter)
    keys = sort_keys(adapter.tensors)
    misfits = Misfits()
    reader = recent_reader(adapter)
    context = Context(adapter, base, names, config, misfits, {}, reader)
    places = len(keys.layers) + len(keys.parameters) + len(keys.tokens)

    def refuse() -> None:
        misfits.refuse_any(places, adapter.config, base.config, len(adapter.tensors))

    _check_tensors(adapter, keys, misfits)
    refuse()
    context = replace(context, wholes=wholes(context, keys))
    edits = [*layer_edits(context, keys.layers), *token_edits(context, keys)]
    _check_conflicts(context, edits, keys)
    resized = resized_config(context, context.wholes)
    refuse()
    tied = slots(context, edits)
    refuse()
    head = head_change(context, tied.slots)
    return Changes(
        tensors=assemble(context, tied.slots),
        config={**resized, **tied.config, **head.config},
        notes=(*tied.notes, *head.notes, *_notes(context, keys)),
        counts=_counts(keys),
        dropped=head.dropped,
    )


def wanted(adapter: AdapterFacts) -> Wanted:
    """The names that a LoRA adapter speaks of, for `find_names`."""
    keys = sort_keys(adapter.tensors)
    modules: dict[str, tuple[LoraShapes, ...]] = {}
    for parts in keys.layers:
        modules[parts.module] = (*modules.get(parts.module, ()), _shapes(adapter, parts))
    parameters = {name: _shape(adapter, key) for name, key in keys.parameters.items()}
    parameters.update({f"{name}.weight": _shape(adapter, key) for name, key in keys.tokens.items()})
    return Wanted(modules, parameters)


def _checked_config(adapter: AdapterFacts) -> LoraConfig:
    config = read_config(adapter.config)
    refuse_variants(config, adapter.config)
    return config


def _shape(adapter: AdapterFacts, key: str) -> tuple[int, ...]:
    return tuple(adapter.tensors[key].shape)


def _shapes(adapter: AdapterFacts, parts: Parts) -> LoraShapes:
    def shape(part: str) -> tuple[int, ...] | None:
        key = parts.tensors.get(part)
        return None if key is None else _shape(adapter, key)

    if "embedding_A" in parts.tensors or "embedding_B" in parts.tensors:
        # (r, tokens) and (dim, r), turned to what a Linear's (tokens, dim) weight would have.
        tokens, dim = shape("embedding_A"), shape("embedding_B")
        return LoraShapes(dim and dim[::-1], tokens and tokens[::-1])
    return LoraShapes(shape("A"), shape("B"))


def _check_tensors(adapter: AdapterFacts, keys: Keys, misfits: Misfits) -> None:
    if not adapter.tensors or not (keys.layers or keys.parameters or keys.tokens):
        raise BadInput(
            f"The adapter {adapter.path} holds no tensor that a merge could use.",
            why="It was saved before training, or without its weights gathered (DeepSpeed ZeRO-3).",
            hint="Save it again from the training run.",
        )
    for key in adapter.tensors:
        shape = _shape(adapter, key)
        if math.prod(shape) == 0:
            misfits.add(key, f"is empty, of shape {shape}", "empty")
    for key in keys.twice:
        misfits.add(key, "is a second tensor for the same place", "unknown")


def _check_conflicts(context: Context, edits: Sequence[Edit], keys: Keys) -> None:
    """Places that two kinds of training claim: PEFT would use one and drop the other."""
    rows = {f"{module}.weight": key for module, key in keys.tokens.items()}
    counted: dict[str, int] = {}
    for edit in edits:
        counted[edit.parameter] = counted.get(edit.parameter, 0) + 1
    for parameter, count in counted.items():
        whole = context.wholes.get(parameter)
        if whole is not None and whole.alone:
            key = keys.parameters[parameter]
            context.misfits.add(key, f"{parameter} was trained both whole and in part", "unknown")
        elif count > 1:
            what = rows.get(parameter, parameter)
            context.misfits.add(what, f"{parameter} was trained in two ways at once", "unknown")


def _notes(context: Context, keys: Keys) -> list[str]:
    notes: list[str] = []
    init = context.config.init
    if init == "lora_ga":
        notes.append(
            "LoRA-GA trains on a base from which the initial factors were subtracted; PEFT adds "
            "the adapter to the original base all the same, and so does this merge. Compare the "
            "result with the adapter as it was trained."
        )
    if init in ("pissa", "olora") or context.config.kasa_config is not None:
        notes.append(
            f"The adapter was trained on a residual of the base ({init or 'kasa'}), which was "
            "derived again from this base as PEFT does. If this base already is the residual that "
            "training saved, set init_lora_weights to true."
        )
    extra = unlisted(context, keys)
    if extra:
        shown = ", ".join(extra[:_SHOWN]) + (" and others" if len(extra) > _SHOWN else "")
        notes.append(
            f"The adapter holds {len(extra)} whole parameters that its configuration does not "
            f"mention ({shown}); they replace the base's, as PEFT does on load."
        )
    if any(parts.inner and parts.module.endswith(".out_proj") for parts in keys.layers):
        notes.append(
            "The change of MultiheadAttention's output projection is added twice, as PEFT does in "
            "training and in merging."
        )
    return notes


def _counts(keys: Keys) -> dict[str, int]:
    counts = {
        "lora": sum(len(parts.tensors) for parts in keys.layers),
        "whole parameters": len(keys.parameters),
        "token rows": len(keys.tokens),
        "unused copies": len(keys.idle),
    }
    return {kind: count for kind, count in counts.items() if count}
