"""An artefact made again, with changes: what its recipe says as arguments of `remerge.export`, and
as a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from remerge.errors import Unsupported
from remerge.merging.asked import parameters_of
from remerge.merging.recipe import Recipe
from remerge.sources.dtypes import NAMED
from remerge.validation.compared import DECIDES, Compared

# Makes what these options of `remerge.export` ask for in an empty directory; where it is then.
Make = Callable[[Mapping[str, Any], Path], Path]

_TITLES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DEFAULTS: Mapping[str, Any] = {
    "method": "sum",
    "dtype": "keep",
    "to": "safetensors",
    "expert_packing": "auto",
    "tokenizer": "auto",
}
# Engines' forms and how their variant is called, where they have one.
_VARIANTS = {"gguf": "file_type", "onnx": "precision"}


def options_of(compared: Compared, form: str) -> dict[str, Any]:
    """How the artefact was made, defaults left out: as its manifest says, or else as its kind and
    ``form`` tell. Raises `Unsupported` where neither does."""
    origin = compared.artefact.origin
    if origin is None:
        recipe = compared.plan.recipe
        found = _of_recipe(recipe.model_copy(update={"dtype": "keep"}))
        if compared.artefact.kind == "gguf":
            found["to"] = f"gguf:{form}"
        elif form in NAMED:
            found["dtype"] = form
        else:
            raise Unsupported("Without a manifest nobody knows how it was quantised.")
        return found
    if origin.recipe.base_precision == "original":
        raise Unsupported("It was made of its base's 16-bit original, which has to be named.")
    return _of_recipe(origin.recipe)


def _of_recipe(recipe: Recipe) -> dict[str, Any]:
    asked: dict[str, Any] = {key: getattr(recipe, key) for key in DECIDES if key != "prefer"}
    asked["weights"] = None if set(recipe.weights) == {1.0} else list(recipe.weights)
    asked["prefer"] = [
        f"{pattern}={which}" if pattern else str(which) for pattern, which in recipe.prefer
    ]
    asked |= {
        "dtype": _TITLES.get(recipe.dtype, recipe.dtype),
        "keep_float32": list(recipe.keep_float32),
        "requantize": recipe.requantize,
        "max_shard_size": recipe.max_shard_size,
        "copy_code": recipe.copy_code,
        "to": recipe.quantize or recipe.format,
        "ignore": list(recipe.ignore),
        "quantize_experts": recipe.quantize_experts,
    }
    asked["tokenizer"] = recipe.tokenizer.removeprefix("adapter:")
    if recipe.form:
        asked |= _of_form(recipe)
    return {
        key: value
        for key, value in asked.items()
        if value not in (None, False, [], {}) and value != _DEFAULTS.get(key)
    }


def _of_form(recipe: Recipe) -> dict[str, Any]:
    form = dict(recipe.form)
    variant = form.pop(_VARIANTS.get(recipe.format, ""), None)
    if recipe.format != "gguf" or form.get("imatrix"):
        raise Unsupported(
            f"Making {recipe.format} again needs a file of samples, which its manifest does not "
            "hold."
        )
    via = form.get("via")
    return {
        "to": f"{recipe.format}:{variant}",
        "dtype": "keep",
        "tensor_type": [f"{pattern}={kind}" for pattern, kind in form.get("tensor_types", ())],
        "via": None if via == "float32" else via,
        "allow_token_differences": bool(form.get("allow_token_differences")),
    }


def command_of(base: str, adapters: Sequence[str], output: str, options: Mapping[str, Any]) -> str:
    """The command that does the same."""
    words = ["remerge", "merge", base, *adapters, "-o", output, "--overwrite"]
    for key, value in options.items():
        if key == "parameters":
            known = parameters_of(str(options.get("method", "sum")))
            stated = {name: one for name, one in value.items() if name in known}
            for name, one in stated.items():
                words += _flag(name, one)
            continue
        words += _flag(key, value)
    return shlex.join(words)


def _flag(key: str, value: Any) -> list[str]:
    name = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}"] if value else [f"--no-{name}"]
    if key in ("prefer", "keep_float32", "tensor_type", "ignore"):
        return [word for one in value for word in (f"--{name}", str(one))]
    if isinstance(value, list | tuple):
        return [f"--{name}", ",".join(f"{one:g}" for one in value)]  # pyright: ignore[reportUnknownVariableType]
    return [f"--{name}", str(value)]
