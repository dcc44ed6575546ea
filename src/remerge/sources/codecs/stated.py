"""What config.json states about a base's quantisation, taken by type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.errors import BadInput
from remerge.sources.documents import as_object

# compressed-tensors wrote the second, and vLLM still reads it where the first is absent.
KEYS = ("quantization_config", "compression_config")


def quantisation_stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """``quantization_config`` of config.json or, of a composite model, of its text model; else
    its older name, whose only format is that of compressed-tensors."""
    for key in KEYS:
        for place in (config, as_object(config.get("text_config")) or {}):
            found = as_object(place.get(key))
            if found:
                return found if key == KEYS[0] else found | {"quant_method": "compressed-tensors"}
    return {}


def stated_integer(stated: Mapping[str, Any], *names: str) -> int | None:
    """The number under the first of these names that is there; None where all are silent."""
    value = next((stated[name] for name in names if stated.get(name) is not None), None)
    if value is not None and type(value) is not int:
        raise BadInput(
            f"quantization_config of config.json states {value!r} as {names[0]}, no whole number.",
            hint="Download the base again.",
        )
    return value


def stated_word(stated: Mapping[str, Any], *names: str) -> str | None:
    """The text under the first of these names that is there, in small letters; else None."""
    value = next((stated[name] for name in names if stated.get(name) is not None), None)
    return None if value is None else str(value).lower()
