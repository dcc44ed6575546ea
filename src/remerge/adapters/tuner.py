"""A family of adapters: what it shares with all others, and the few things that are its own.

An adapter's tensors are those of adapted layers (the family's own), whole parameters, and rows of
embeddings. From headers and configurations alone they become changes of the checkpoint's tensors;
whatever has no place there is a misfit, and refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

from remerge.adapters.assembly import assemble
from remerge.adapters.config import Config, read_config
from remerge.adapters.deltas import Changes
from remerge.adapters.edits import Edit, Reading
from remerge.adapters.factors import recent_reader
from remerge.adapters.facts import AdapterFacts, BaseFacts, FactorShapes, Wanted
from remerge.adapters.heads import head_change
from remerge.adapters.keys import Keys, LayerKey, Parts, sort_keys
from remerge.adapters.misfits import Misfits
from remerge.adapters.regions import Names
from remerge.adapters.saved import unlisted, wholes
from remerge.adapters.tokens import token_edits
from remerge.adapters.tying import slots
from remerge.adapters.untouched import untouched_note
from remerge.adapters.vocabulary import resized_config
from remerge.errors import BadInput

_SHOWN = 3
# How names of dtypes begin that hold one float each.
_FLOATS = ("F8_", "F16", "BF16", "F32", "F64")


def _no_shapes(adapter: AdapterFacts, parts: Parts) -> FactorShapes:
    return FactorShapes(None, None)


def _accept(config: object, raw: Mapping[str, Any]) -> None:
    pass


def _nothing(context: object, keys: Keys) -> list[str]:
    return []


@dataclass(frozen=True)
class Tuner(Generic[Config]):
    """What one ``peft_type`` means.

    ``config``: its fields of adapter_config.json. ``layer_key``: which tensors are those of an
    adapted layer. ``edits``: what the adapted layers do to parameters of the model, with misfits
    for those without a place. ``shapes``: a layer's shape as its factors tell it, where they do
    (names can then be told without building the model). ``check`` raises `Unsupported` for variants
    that cannot be merged; ``notes`` are sentences that the user must read. ``keeps_nothing`` says
    that training may leave a layer without a single rank, and so with empty tensors; ``ordered``,
    that what a layer gets depends on its place among the model's modules. ``places`` are the parts
    that hold positions, of any dtype; all other tensors hold floats.
    """

    name: str
    config: type[Config]
    layer_key: LayerKey
    edits: Callable[[Reading[Config], Sequence[Parts]], Sequence[Edit]]
    shapes: Callable[[AdapterFacts, Parts], FactorShapes] = _no_shapes
    check: Callable[[Config, Mapping[str, Any]], None] = _accept
    notes: Callable[[Reading[Config], Keys], Sequence[str]] = _nothing
    keeps_nothing: bool = False
    ordered: bool = False
    places: frozenset[str] = frozenset()


def changes(tuner: Tuner[Config], adapter: AdapterFacts, base: BaseFacts, names: Names) -> Changes:
    """What an adapter asks of this base, from headers and configurations alone.

    Raises `DoesNotFit` listing every adapter tensor without its place, `Unsupported` for kinds that
    cannot be merged, `BadInput` for a broken configuration.
    """
    config = read_config(tuner.config, adapter.config)
    tuner.check(config, adapter.config)
    keys = sort_keys(adapter.tensors, tuner.layer_key)
    misfits = Misfits()
    context = Reading(adapter, base, names, config, misfits, {}, recent_reader(adapter))
    places = len(keys.layers) + len(keys.parameters) + len(keys.tokens)

    def refuse() -> None:
        misfits.refuse_any(places, adapter.config, base.config, len(adapter.tensors))

    _check_tensors(tuner, adapter, keys, misfits)
    refuse()
    context = replace(context, wholes=wholes(context, keys))
    edits = [*tuner.edits(context, keys.layers), *token_edits(context, keys)]
    _check_conflicts(context, edits, keys)
    resized = resized_config(context, context.wholes)
    refuse()
    tied = slots(context, edits)
    refuse()
    head = head_change(context, tied.slots)
    return Changes(
        tensors=assemble(context, tied.slots),
        config={**resized, **tied.config, **head.config},
        notes=(*tied.notes, *head.notes, *tuner.notes(context, keys), *_notes(context, keys)),
        counts=_counts(tuner.name, keys),
        dropped=head.dropped,
        rslora=adapter.config.get("use_rslora") is True,
    )


def wanted(tuner: Tuner[Any], adapter: AdapterFacts) -> Wanted:
    """The names that an adapter speaks of, for `find_names`."""
    keys = sort_keys(adapter.tensors, tuner.layer_key)
    modules: dict[str, tuple[FactorShapes, ...]] = {}
    for parts in keys.layers:
        if parts.module:
            found = tuner.shapes(adapter, parts)
            modules[parts.module] = (*modules.get(parts.module, ()), found)
    parameters = {name: _shape(adapter, key) for name, key in keys.parameters.items()}
    parameters.update({f"{name}.weight": _shape(adapter, key) for name, key in keys.tokens.items()})
    return Wanted(modules, parameters, tuner.ordered)


def _shape(adapter: AdapterFacts, key: str) -> tuple[int, ...]:
    return tuple(adapter.tensors[key].shape)


def _check_tensors(tuner: Tuner[Any], adapter: AdapterFacts, keys: Keys, misfits: Misfits) -> None:
    if not adapter.tensors or not (keys.layers or keys.parameters or keys.tokens):
        raise BadInput(
            f"The adapter {adapter.path} holds no tensor that a merge could use.",
            why="It was saved before training, or without its weights gathered (DeepSpeed ZeRO-3).",
            hint="Save it again from the training run.",
        )
    other = {
        key for parts in keys.layers for part, key in parts.tensors.items() if part in tuner.places
    }
    other.update(keys.idle)
    for key, facts in adapter.tensors.items():
        shape = _shape(adapter, key)
        if math.prod(shape) == 0 and not tuner.keeps_nothing:
            misfits.add(key, f"is empty, of shape {shape}", "empty")
        if not facts.dtype.startswith(_FLOATS) and key not in other:
            misfits.add(key, f"has dtype {facts.dtype}, but its values are floats", "dtype")
    for key in keys.twice:
        misfits.add(key, "is a second tensor for the same place", "unknown")


def _check_conflicts(context: Reading[Any], edits: Sequence[Edit], keys: Keys) -> None:
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


def _notes(context: Reading[Any], keys: Keys) -> list[str]:
    notes = untouched_note(context, keys)
    extra = unlisted(context, keys)
    if not extra:
        return notes
    shown = ", ".join(extra[:_SHOWN]) + (" and others" if len(extra) > _SHOWN else "")
    return [
        *notes,
        f"The adapter holds {len(extra)} whole parameters that its configuration does not "
        f"mention ({shown}); they replace the base's, as PEFT does on load.",
    ]


def _counts(name: str, keys: Keys) -> dict[str, int]:
    counts = {
        name: sum(len(parts.tensors) for parts in keys.layers),
        "whole parameters": len(keys.parameters),
        "token rows": len(keys.tokens),
        "unused copies": len(keys.idle),
    }
    return {kind: count for kind, count in counts.items() if count}
