"""Finds the tensors that bitsandbytes quantised: 4-bit ones by their state, 8-bit ones by SCB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from remerge.errors import Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.bnb_4bit import TABLES, FourBit
from remerge.sources.codecs.bnb_int8 import Int8
from remerge.sources.codecs.bnb_state import MAX_BYTES, QuantState, parse_state
from remerge.sources.codecs.codec import Codec, Read
from remerge.sources.codecs.conv1d import as_stored
from remerge.sources.codecs.parts import (
    check_count,
    check_dtype,
    leftover,
    misfit,
    part,
)
from remerge.sources.documents import as_object
from remerge.sources.dtypes import NAMED

_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")
_PARTS = re.compile(
    r".+\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*|SCB|weight_format)"
)
# bnb_4bit_quant_storage: the dtype as which the packed bytes are kept.
_STORAGE = ("U8", "I8", "BF16", "F16", "F32", "F64")


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """All NF4, FP4 and int8 tensors, in the order of the checkpoint.

    Raises `BadInput` for missing, left over or ill-fitting parts, `Unsupported` for variants that
    bitsandbytes itself does not read any more.
    """
    found: list[Codec] = []
    for name, stored in tensors.items():
        if match := _STATE.fullmatch(name):
            found.append(_four_bit(match[1], match[2], stored, tensors, read))
        elif name.endswith(".SCB"):
            found.append(_int8(name.removesuffix(".SCB"), stored, config, tensors, read))
    used = {stored.name for codec in found for stored in codec.parts.values()}
    for name, stored in tensors.items():
        if name in used:
            continue
        if _PARTS.fullmatch(name):
            raise leftover(stored, "the tensor that it belongs to has no state")
        if name.endswith(".weight") and stored.dtype in ("U8", "I8"):
            raise leftover(stored, "neither a quant_state nor SCB tells how to read it")
    return [as_stored(config, codec) for codec in found]


def _four_bit(
    name: str, kind: str, stored: StoredTensor, tensors: Mapping[str, StoredTensor], read: Read
) -> FourBit:
    if kind not in TABLES:
        raise Unsupported(
            f"Tensor {name!r} is quantised as bitsandbytes {kind}, which is not read here.",
            why="Formats that are: nf4 and fp4.",
            hint="Merge into the unquantised original of this base.",
        )
    check_dtype(stored, "U8")
    if prod(stored.shape) > MAX_BYTES:
        raise misfit(stored, f"at most {MAX_BYTES} elements", "it is a short JSON text")
    document = read(stored, 0, prod(stored.shape)).numpy().tobytes()
    state = parse_state(stored.name, kind, document)
    parts = {
        "codes": part(tensors, name, name),
        "absmax": part(tensors, f"{name}.absmax", name),
        "quant_map": part(tensors, f"{name}.quant_map", name),
        "quant_state": stored,
    }
    _check_codes(parts["codes"], state)
    _check_map(parts["quant_map"], state, read)
    blocks = -(-prod(state.shape) // state.blocksize)
    of = f"shape {list(state.shape)} has {blocks:,} blocks of {state.blocksize}"
    check_count(parts["absmax"], blocks, of)
    if state.nested is None:
        check_dtype(parts["absmax"], "F32")
        return FourBit(name, state, parts, torch.empty(0))
    check_dtype(parts["absmax"], "U8")
    for role in ("nested_absmax", "nested_quant_map"):
        parts[role] = part(tensors, f"{name}.{role}", name)
        check_dtype(parts[role], "F32")
    groups = -(-blocks // state.nested.blocksize)
    check_count(parts["nested_absmax"], groups, f"{of}, and those {groups:,} blocks")
    check_count(parts["nested_quant_map"], 256, "there are 256 codes of 8 bits")
    nested_map = read(parts["nested_quant_map"], 0, 256)
    if not bool((nested_map.diff() >= 0).all()) or not bool(nested_map.isfinite().all()):
        raise misfit(parts["nested_quant_map"], "256 rising numbers", "codes are looked up in it")
    return FourBit(name, state, parts, (nested_map[:-1] + nested_map[1:]) / 2)


def _check_codes(codes: StoredTensor, state: QuantState) -> None:
    check_dtype(codes, *_STORAGE)
    packed = -(-prod(state.shape) // 2)
    if codes.nbytes != packed:
        raise misfit(codes, f"{packed:,} bytes", f"shape {list(state.shape)} has two codes a byte")
    if codes.shape[0] == 1 and packed > 1:
        raise Unsupported(
            f"Tensor {codes.name!r} has shape {list(codes.shape)}, the transposed form of "
            "bitsandbytes, which is not read here.",
            hint="Load the base with transformers and save it again.",
        )


def _check_map(stored: StoredTensor, state: QuantState, read: Read) -> None:
    """bitsandbytes goes by the kind and not by the map, so another map would mean other values."""
    check_dtype(stored, "F32")
    check_count(stored, 16, "there are 16 codes of 4 bits")
    if not torch.allclose(read(stored, 0, 16), TABLES[state.kind], rtol=0, atol=1e-6):
        raise Unsupported(
            f"Tensor {stored.name!r} holds other values than the {state.kind} of bitsandbytes.",
            hint="Merge into the unquantised original of this base.",
        )


def _int8(
    module: str,
    scales: StoredTensor,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    read: Read,
) -> Int8:
    name = f"{module}.weight"
    codes = part(tensors, name, name)
    check_dtype(codes, "I8")
    check_dtype(scales, "F32")
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise misfit(codes, "two dimensions", f"{scales.name!r} holds a scale for each row")
    check_count(scales, codes.shape[0], f"{name!r} has {codes.shape[0]:,} rows")
    parts = {"codes": codes, "scales": scales}
    layout = tensors.get(f"{module}.weight_format")
    if layout is not None:
        parts["weight_format"] = layout
        check_dtype(layout, "U8")
        check_count(layout, 1, "it is the number of a layout")
        if int(read(layout, 0, 1)) != 0:
            raise Unsupported(
                f"Tensor {name!r} is stored in layout {int(read(layout, 0, 1))} of bitsandbytes, "
                "where only 0 (rows) is read.",
                why="Old versions saved layouts made for one kind of GPU.",
                hint="Load the base with the bitsandbytes that wrote it and save it again.",
            )
    return Int8(name, _running_dtype(config), parts)


def _running_dtype(config: Mapping[str, Any]) -> str:
    """The dtype in which the model runs: as config.json says, else float16 as in LLM.int8()."""
    for place in (config, as_object(config.get("text_config")) or {}):
        stated = place.get("dtype", place.get("torch_dtype"))
        if stated is not None:
            name = str(stated).removeprefix("torch.")
            if name not in NAMED:
                raise Unsupported(
                    f"config.json states dtype {stated!r}, in which an 8-bit base cannot be read.",
                    hint="Set it to float16, bfloat16 or float32.",
                )
            return NAMED[name]
    return "F16"
