"""remerge's own recipe files: the options of ``remerge merge`` by their names.

base: ./base
adapters:
  - ./a
  - {path: ./b, weight: 0.4, density: 0.3}
method: ties
density: 0.5            # or below parameters:
output: ./merged
"""

from __future__ import annotations

from typing import Any

from remerge.errors import UsageError
from remerge.merging.asked import ALL_PARAMETERS
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile

_TEXTS = (
    "method",
    "dtype",
    "base_precision",
    "simulate",
    "requantize",
    "expert_packing",
    "tokenizer",
    "to",
    "via",
    "imatrix",
    "calibration",
)
_LISTS = ("prefer", "keep_float32", "tensor_type", "ignore")
_FLAGS = ("copy_code", "allow_token_differences", "quantize_experts")
_NUMBERS = ("calibration_samples", "calibration_length", "group_size")
_OTHERS = ("weights", "max_shard_size", *_NUMBERS)
_INPUTS = ("base", "adapters", "output", "parameters")
KEYS = frozenset({*_TEXTS, *_LISTS, *_FLAGS, *_OTHERS, *_INPUTS, *ALL_PARAMETERS})

# Options that change no byte of the output.
_RESOURCES = frozenset(
    {
        "max_memory",
        "threads",
        "device",
        "retention",
        "overwrite",
        "dry_run",
        "json",
        "engine_python",
        "prove",
    }
)


def _read(fields: Fields) -> RecipeFile:
    fields = _underscored(fields)
    for key in _RESOURCES & fields.values.keys():
        raise fields.wrong(
            key, "is no part of a recipe", f"Give it on the command line: --{key.replace('_', '-')}"
        )
    fields.refuse_unknown(KEYS)
    options: dict[str, Any] = {key: fields.text(key) for key in _TEXTS if key in fields.values}
    options |= {key: fields.texts(key) for key in _LISTS if key in fields.values}
    options |= {key: fields.flag(key) for key in _FLAGS if key in fields.values}
    options |= {
        key: fields.values[key] for key in ("max_shard_size", *_NUMBERS) if key in fields.values
    }
    if "base_precision" in options:
        kind, separator, named = options["base_precision"].partition("=")
        options["base_precision"] = kind + separator + (fields.place(named) if named else "")
    paths, own = _adapters(fields)
    parameters = _parameters(fields)
    weights = _each("weight", own, fields.values.get("weights"), fields)
    if weights is not None:
        options["weights"] = weights
    for name in dict.fromkeys(name for one in own for name in one if name != "weight"):
        parameters[name] = _each(name, own, parameters.get(name), fields)
    if parameters:
        options["parameters"] = parameters
    base = fields.text("base")
    return RecipeFile(
        base=None if base is None else fields.place(base),
        adapters=paths,
        output=fields.text("output"),
        options=options,
    )


def _underscored(fields: Fields) -> Fields:
    """Keys as parameters are named: ``svd-rank`` is ``svd_rank``."""
    found: dict[str, Any] = {}
    for key, value in fields.values.items():
        name = key.replace("-", "_")
        if name in found:
            raise fields.wrong(key, "is there twice")
        found[name] = value
    return Fields(found, fields.path, fields.where)


def _adapters(fields: Fields) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The adapters, and of each what is said of it alone."""
    value = fields.values.get("adapters", [])
    listed: list[object] = [value] if isinstance(value, str) else fields.items("adapters")
    each = {"weight", *(name for name, per_adapter in ALL_PARAMETERS.items() if per_adapter)}
    paths: list[str] = []
    own: list[dict[str, Any]] = []
    for number, entry in enumerate(listed, 1):
        if isinstance(entry, str):
            entry = {"path": entry}
        adapter = _underscored(fields.part(f"adapters[{number}]", entry))
        adapter.refuse_unknown({"path", "adapter", *each})
        named = [path for path in (adapter.text("path"), adapter.text("adapter")) if path]
        if len(named) != 1:
            raise fields.wrong("adapters", f"number {number} needs one path", "Write path: ./a.")
        paths.append(fields.place(named[0]))
        own.append({key: v for key, v in adapter.values.items() if key in each})
    return tuple(paths), own


def _parameters(fields: Fields) -> dict[str, Any]:
    """The method's parameters, below ``parameters`` or beside it."""
    nested = _underscored(fields.parts("parameters"))
    nested.refuse_unknown(ALL_PARAMETERS)
    beside = {key: v for key, v in fields.values.items() if key in ALL_PARAMETERS}
    for key in beside.keys() & nested.values.keys():
        raise fields.wrong(key, "is there twice: below parameters as well")
    return {**nested.values, **beside}


def _each(name: str, own: list[dict[str, Any]], common: Any, fields: Fields) -> Any:
    """A number for each adapter: its own, else the one for all, else None for the default."""
    if not any(name in one for one in own):
        return common
    if isinstance(common, list):
        raise UsageError(
            f"{fields.path}: {name} is given for all adapters and for single ones.",
            hint="Give a list, or one at each adapter.",
        )
    return [one.get(name, common) for one in own]


OWN = Grammar("remerge", frozenset({"base", "adapters"}), KEYS, _read)
