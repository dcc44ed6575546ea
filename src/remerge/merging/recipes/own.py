"""remerge's own recipe files: the options of ``remerge merge`` by their names.

base: ./base
adapters:
  - ./a
  - {path: ./b, weight: 0.4, density: 0.3}
method: ties
density: 0.5            # or below parameters:
output: ./merged
gate:                   # what it must pass to be published
  eval: {a: a.jsonl, b: b.jsonl}
  max_drop: 0.01
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
_INPUTS = ("base", "adapters", "output", "parameters", "gate")
_GATE_NUMBERS = ("limit", "max_drop", "max_kl", "min_agreement")
_GATE = frozenset({"eval", "scorer", "text", "prompts", *_GATE_NUMBERS})
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
        "run_id",
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
        gate=_gate(fields) if "gate" in fields.values else None,
    )


def _gate(fields: Fields) -> dict[str, Any]:
    """What the output must pass, as keywords of `remerge.compare`'s gate."""
    block = _underscored(fields.parts("gate"))
    block.refuse_unknown(_GATE)
    found: dict[str, Any] = {}
    named = block.values.get("eval")
    if isinstance(named, dict):
        files = block.parts("eval")
        texts = [(name, files.text(name)) for name in files.values]
        found["evaluations"] = tuple(f"{name}={fields.place(text or '')}" for name, text in texts)
    elif named is not None:
        found["evaluations"] = tuple(_named_file(fields, text) for text in block.texts("eval"))
    for key in ("text", "prompts"):
        path = block.text(key)
        if path is not None:
            found[key] = fields.place(path)
    scorer = block.text("scorer")
    if scorer is not None:
        found["scorer"] = scorer
    for key in _GATE_NUMBERS:
        if key in block.values:
            value = block.values[key]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise block.wrong(key, "is no number")
            found[key] = value
    return found


def _named_file(fields: Fields, text: str) -> str:
    """``[NAME=]FILE``, the file as it was meant."""
    name, equals, path = text.rpartition("=")
    return f"{name}{equals}{fields.place(path)}"


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
