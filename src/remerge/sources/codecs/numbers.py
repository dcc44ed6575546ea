"""Numbers and the model's dtype as config.json states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object
from remerge.sources.dtypes import NAMED


def model_dtype(config: Mapping[str, Any]) -> str:
    """The safetensors dtype of the model's parameters: ``dtype`` of config.json (``torch_dtype``
    before transformers 5), BF16 where it names none that a model runs in."""
    for place in (config, as_object(config.get("text_config")) or {}):
        for key in ("dtype", "torch_dtype"):
            named = place.get(key)
            if isinstance(named, str) and named.removeprefix("torch.") in NAMED:
                return NAMED[named.removeprefix("torch.")]
    return "BF16"


def whole_number(value: object, what: str) -> int:
    """A whole number from 1 up; raises `BadInput` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(
            f"config.json states {value!r} as {what}, not a whole number from 1 up.",
            hint="Download the base again.",
        )
    return value


def pair(value: object, what: str) -> tuple[int, int]:
    """Two whole numbers, such as the shape of a block; raises `BadInput` for anything else."""
    found = as_list(value)
    if found is None or len(found) != 2:
        raise BadInput(
            f"config.json states {value!r} as {what}, not two whole numbers.",
            hint="Download the base again.",
        )
    return whole_number(found[0], what), whole_number(found[1], what)
