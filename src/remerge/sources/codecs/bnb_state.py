"""The JSON beside a bitsandbytes 4-bit tensor that says how it was quantised, taken strictly.

It is what ``QuantState.as_dict(packed=True)`` of bitsandbytes/functional.py writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import Any

from remerge.errors import BadInput, Unsupported
from remerge.sources.documents import as_list, as_object

# Far more than bitsandbytes writes, and little enough to read for every tensor.
MAX_BYTES = 4096

_BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_MAX_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True)
class Nested:
    """Double quantisation: the absmax values are themselves 8-bit codes."""

    blocksize: int
    offset: float


@dataclass(frozen=True)
class QuantState:
    """How a 4-bit tensor was quantised; ``dtype`` is a safetensors dtype."""

    kind: str
    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested: Nested | None


def parse_state(name: str, kind: str, document: bytes) -> QuantState:
    """The state of the tensor whose ``quant_state`` part is called ``name``.

    Raises `BadInput` for anything that bitsandbytes would not write, `Unsupported` for values
    that its dequantiser refuses.
    """
    try:
        stated = as_object(json.loads(document.decode(), object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        raise _bad(name, f"is not valid JSON ({error})") from error
    if stated is None:
        raise _bad(name, "is not a JSON object")
    if stated.get("quant_type") != kind:
        raise _bad(name, f"states quant_type {stated.get('quant_type')!r}")
    dtype = stated.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _unread(name, f"dtype {dtype!r}", "bfloat16, float16 or float32")
    dims = as_list(stated.get("shape"))
    if not dims or not all(type(dim) is int and dim > 0 for dim in dims):
        raise _bad(name, f"states shape {stated.get('shape')!r}")
    return QuantState(
        kind,
        _blocksize(name, stated, "blocksize"),
        _DTYPES[dtype],
        tuple(dims),
        _nested(name, stated),
    )


def _nested(name: str, stated: dict[str, Any]) -> Nested | None:
    if not any(key.startswith("nested_") for key in stated):
        return None
    if stated.get("nested_dtype") != "float32":
        raise _unread(name, f"nested_dtype {stated.get('nested_dtype')!r}", "float32")
    offset = stated.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float):
        raise _bad(name, f"states nested_offset {offset!r}")
    if abs(offset) > _MAX_FLOAT32 or not isfinite(offset):
        raise _bad(name, "states a nested_offset that is no float32")
    return Nested(_blocksize(name, stated, "nested_blocksize"), float(offset))


def _blocksize(name: str, stated: dict[str, Any], key: str) -> int:
    value = stated.get(key)
    if type(value) is not int or value not in _BLOCKSIZES:
        raise _unread(name, f"{key} {value!r}", f"a power of two from 32 to {_BLOCKSIZES[-1]}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("it states a name twice")
    return dict(pairs)


def _bad(name: str, how: str) -> BadInput:
    return BadInput(
        f"Tensor {name!r} {how}, and so does not say how the tensor was quantised.",
        why="The checkpoint is damaged, or was not written by bitsandbytes.",
        hint="Download the base again, or merge into its unquantised original.",
    )


def _unread(name: str, what: str, instead: str) -> Unsupported:
    return Unsupported(
        f"Tensor {name!r} states {what}, where bitsandbytes writes {instead}.",
        hint="Merge into the unquantised original of this base.",
    )
