"""The dtypes of the safetensors format, and how torch calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Bits per element; the sub-byte formats are packed.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F4": "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

# What a merge can add to and round to. Codes (fp8, int8, fp4) need a codec first.
MERGEABLE = frozenset({"F16", "BF16", "F32", "F64"})

# `--dtype` by the names people type.
NAMED = {
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "half": "F16",
    "float32": "F32",
    "fp32": "F32",
}


def itemsize(dtype: str) -> int:
    """Bytes per element of a dtype with whole bytes."""
    return BITS[dtype] // 8


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name; KeyError for the 6-bit floats torch lacks."""
    import torch

    return getattr(torch, _TORCH[dtype])


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype."""
    wanted = str(dtype).removeprefix("torch.")
    return next(name for name, torch_name in _TORCH.items() if torch_name == wanted)
