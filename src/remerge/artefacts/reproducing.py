"""The command that makes an output again, from its manifest."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from remerge.artefacts.manifest import InputRecord
from remerge.errors import UsageError
from remerge.merging.asked import read_method
from remerge.merging.recipe import Recipe
from remerge.sources.dtypes import NAMED

# Of a form's options: the flag that gives each.
_FLAGS = {
    "via": "--via",
    "samples": "--calibration-samples",
    "length": "--calibration-length",
    "group_size": "--group-size",
}
_DEFAULTS: Mapping[str, Any] = {"via": "float32", "samples": 128, "length": 512, "group_size": 128}


def command_of(
    recipe: Recipe, base: InputRecord, adapters: Sequence[InputRecord], output: str
) -> str:
    """What to type for the same bytes. Inputs are named as the manifest does: by their Hub id and
    commit, else by the name of their directory; files as their options."""
    verb = "merge" if adapters else "export"
    words = ["remerge", verb, named(base), *map(named, adapters), "-o", output]
    return shlex.join([*words, *_form(recipe), *_options(recipe, len(adapters))])


def named(record: InputRecord) -> str:
    """An input as it is typed: its Hub id and commit, else the name of its directory."""
    if record.hub_id is None:
        return record.name
    name = f"{record.hub_id}@{record.commit}" if record.commit else record.hub_id
    return f"{name}:{record.subfolder}" if record.subfolder else name


def _form(recipe: Recipe) -> list[str]:
    """``--to`` with the options that belong to it."""
    if recipe.quantize is not None:
        return ["--to", recipe.quantize]
    if recipe.format == "safetensors":
        return []
    form = recipe.form
    words = ["--to", f"{recipe.format}{_variant(recipe.format, form)}"]
    words += [word for pair in form.get("tensor_types", ()) for word in _tensor_type(pair)]
    for name, flag in _FLAGS.items():
        if form.get(name, _DEFAULTS[name]) != _DEFAULTS[name]:
            words += [flag, str(form[name])]
    for name in ("imatrix", "calibration"):
        if form.get(name):
            words += [f"--{name}", f"FILE-{str(form[name])[:8]}"]
    if form.get("allow_token_differences"):
        words.append("--allow-token-differences")
    return words


def _variant(name: str, form: Mapping[str, Any]) -> str:
    if "file_type" in form:
        return f":{form['file_type']}"
    if "precision" in form:
        return f":{form['precision']}"
    if name == "gptqmodel":
        return f":int{form.get('bits', 4)}"
    if "bits" in form:
        return f":W{form['bits']}A16{'' if form.get('symmetric', True) else '_ASYM'}"
    return ""


def _tensor_type(pair: Sequence[str]) -> list[str]:
    return ["--tensor-type", f"{pair[0]}={pair[1]}"]


def _options(recipe: Recipe, adapters: int) -> list[str]:
    words: list[str] = []

    def say(flag: str, value: object) -> None:
        words.extend((flag, str(value)))

    if recipe.method != "sum":
        say("--method", recipe.method)
    if any(weight != 1.0 for weight in recipe.weights):
        # A list that begins with a minus would be taken for an option.
        words.append(f"--weights={_numbers(recipe.weights)}")
    for name, value in _unusual(recipe, adapters).items():
        words += _parameter(name, value)
    for pattern, number in recipe.prefer:
        say("--prefer", f"{pattern}={number}")
    if recipe.adapter is not None:
        if recipe.adapter.dtype != "F32":
            say("--dtype", _dtype(recipe.adapter.dtype))
        if recipe.adapter.svd_rank is not None:
            say("--svd-rank", recipe.adapter.svd_rank)
    elif recipe.dtype != "keep" and not recipe.form:
        say("--dtype", _dtype(recipe.dtype))
    for pattern in recipe.keep_float32:
        say("--keep-float32", pattern)
    if recipe.base_precision == "original":
        say("--base-precision", "original=BASE")
    elif recipe.base_precision == "dequantized":
        say("--base-precision", "dequantized")
    if recipe.simulate is not None:
        say("--simulate", recipe.simulate)
    if recipe.requantize is not None:
        say("--requantize", recipe.requantize)
    for pattern in recipe.ignore:
        say("--ignore", pattern)
    if recipe.quantize_experts:
        words.append("--quantize-experts")
    if recipe.expert_packing != "auto":
        say("--expert-packing", recipe.expert_packing)
    if recipe.max_shard_size is not None:
        say("--max-shard-size", recipe.max_shard_size)
    if recipe.tokenizer != "auto":
        say("--tokenizer", recipe.tokenizer.removeprefix("adapter:"))
    if recipe.copy_code:
        words.append("--copy-code")
    return words


def _dtype(stored: str) -> str:
    return next(name for name, dtype in NAMED.items() if dtype == stored)


def _unusual(recipe: Recipe, adapters: int) -> dict[str, Any]:
    """The method's parameters that are not its defaults."""
    try:
        _, usual = read_method(recipe.method, {}, adapters)
    except UsageError:
        usual = {}
    return {name: value for name, value in recipe.parameters.items() if usual.get(name) != value}


def _parameter(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list | tuple):
        return [f"--{flag}={_numbers(value)}"]  # pyright: ignore[reportUnknownArgumentType]
    return [] if value is None else [f"--{flag}={value}"]


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value!r}" for value in values)
