"""What config.json states of a quantised base: the quantisation, and the dtype the model runs in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object
from remerge.sources.dtypes import NAMED


def quantisation(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """``quantization_config`` of config.json or, of a composite model, of its text model."""
    for place in (config, as_object(config.get("text_config")) or {}):
        found = as_object(place.get("quantization_config"))
        if found:
            return found
    return None


def model_dtype(config: Mapping[str, Any]) -> str:
    """The safetensors dtype of the model's parameters: ``dtype`` of config.json (``torch_dtype``
    before transformers 5), BF16 where it names none that a model runs in."""
    for place in (config, as_object(config.get("text_config")) or {}):
        for key in ("dtype", "torch_dtype"):
            named = place.get(key)
            if isinstance(named, str) and named.removeprefix("torch.") in NAMED:
                return NAMED[named.removeprefix("torch.")]
    return "BF16"


def whole(value: object, what: str, *, least: int = 1) -> int:
    """A whole number of config.json; raises `BadInput` for anything else or less."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"config.json: {what} is {value!r}, not a whole number from {least} up.")
    return value


def pair(value: object, what: str) -> tuple[int, int]:
    """Two whole numbers, such as the shape of a block; raises `BadInput` for anything else."""
    found = as_list(value)
    if found is None or len(found) != 2:
        raise BadInput(f"config.json: {what} is {value!r}, not two whole numbers.")
    return whole(found[0], what), whole(found[1], what)
