"""Bases of compressed-tensors (llm-compressor, vLLM): each module as its parts and scheme say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Any

import torch

from remerge.errors import BadInput, Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec, Read
from remerge.sources.codecs.grid import Grid
from remerge.sources.codecs.one_byte import OneByte
from remerge.sources.codecs.packed_float4 import PackedFloat4
from remerge.sources.codecs.packed_int import PackedInt
from remerge.sources.codecs.parts import check_count, check_dtype, leftover, misfit, part
from remerge.sources.codecs.schemes import Scheme, Schemes, read_schemes
from remerge.sources.codecs.stated import quantisation_stated
from remerge.sources.documents import as_object

# Parts of a weight; those of activations and caches stand beside it and go when it is decoded.
_OF_WEIGHTS = tuple(
    f"weight_{what}" for what in ("scale", "zero_point", "global_scale", "shape", "g_idx")
)
_BESIDE = tuple(
    f"{of}_{what}" for of in ("input", "output") for what in ("scale", "zero_point", "global_scale")
)
_OF_CACHES = tuple(f"{of}_{what}" for of in "qkv" for what in ("scale", "zero_point"))
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_ONE_BYTE = ("I8", "F8_E4M3")
_FLOATS = ("F16", "BF16", "F32")
_ORIGINAL = "Merge into the unquantised original of this base."

# The formats that the codes' dtype can stand for.
_FORMATS = {
    "I32": ("pack-quantized",),
    "I8": ("int-quantized", "naive-quantized"),
    "F8_E4M3": ("float-quantized", "naive-quantized", "mxfp8-quantized"),
    "U8": ("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
}


def find(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read) -> list[Codec]:
    """The quantised tensors of a checkpoint; see `Find`."""
    stated = quantisation_stated(config)
    _check_stated(stated)
    schemes = read_schemes(stated)
    caches = dict(_caches(tensors))
    found: list[Codec] = []
    used: set[str] = set()
    for module, codes in _modules(tensors):
        parts = {"codes": codes}
        for role in (*_OF_WEIGHTS, *_BESIDE):
            if f"{module}.{role}" in tensors:
                parts[role] = tensors[f"{module}.{role}"]
        parts |= caches.get(module, {})
        codec = _codec(module, _scheme(schemes, module, codes, stated), parts, tensors, read)
        found.append(codec)
        used.update(stored.name for stored in parts.values())
    for name, stored in tensors.items():
        if name.endswith(tuple(f".{role}" for role in _OF_WEIGHTS)) and name not in used:
            raise leftover(stored, "the checkpoint has no codes that it belongs to")
    return found


def _check_stated(stated: Mapping[str, Any]) -> None:
    sparsity = as_object(stated.get("sparsity_config")) or {}
    for format in (sparsity.get("format"), stated.get("format")):
        if format in _SPARSE:
            raise Unsupported(
                f"The base is stored as {format}, which is not read here.",
                why="compressed-tensors itself no longer reads its sparse formats.",
                hint=_ORIGINAL,
            )
    if (as_object(stated.get("transform_config")) or {}).get("config_groups"):
        raise Unsupported(
            "The base's weights are rotated (transform_config of config.json), which is not "
            "undone here.",
            why="An adapter speaks of the weights before their rotation.",
            hint=_ORIGINAL,
        )


def _modules(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """The quantised modules by name, with their codes."""
    for name, stored in tensors.items():
        module, _, role = name.rpartition(".")
        if role == "weight" and f"{module}.weight_packed" in tensors:
            raise leftover(stored, f"the checkpoint also holds {module + '.weight_packed'!r}")
        if role == "weight_packed" or (role == "weight" and stored.dtype in _ONE_BYTE):
            yield module, stored
        elif role == "weight" and f"{module}.weight_scale" in tensors:
            raise Unsupported(
                f"Tensor {name!r} is stored as {stored.dtype} and yet has a weight_scale.",
                why="The base was saved before it was compressed, or in a format not known here.",
                hint="Save the base compressed, or merge into its unquantised original.",
            )


def _caches(
    tensors: Mapping[str, StoredTensor],
) -> Iterator[tuple[str, dict[str, StoredTensor]]]:
    """Scales of a quantised cache, which belong to an attention: put down to the module of the
    projection they scale, or to the one that all three are fused in."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in tensors.items():
        attention, _, role = name.rpartition(".")
        if role in _OF_CACHES:
            for module in (f"{attention}.{role[0]}_proj", f"{attention}.qkv_proj"):
                if f"{module}.weight_packed" in tensors or f"{module}.weight_scale" in tensors:
                    found.setdefault(module, {})[role] = stored
                    break
    yield from found.items()


def _scheme(
    schemes: Schemes, module: str, codes: StoredTensor, stated: Mapping[str, Any]
) -> Scheme:
    """The scheme of a module, held against what its codes are."""
    check_dtype(codes, *_FORMATS)
    scheme = schemes.of(module)
    said = scheme.format
    if said is None and len(schemes.all) == 1:
        said = stated.get("format")
    known = {format for formats in _FORMATS.values() for format in formats}
    fits = scheme.kind == ("int" if codes.dtype in ("I32", "I8") else "float")
    fits = fits and (scheme.kind == "int" or scheme.bits == (4 if codes.dtype == "U8" else 8))
    if not fits or (said in known and said not in _FORMATS[codes.dtype]):
        raise BadInput(
            f"Tensor {codes.name!r} is stored as {codes.dtype}, but config.json states "
            f"{said or 'no format'}, {scheme.words}, for it.",
            why="Weights and config.json come from different saves.",
            hint="Download the base again, or merge into its unquantised original.",
        )
    return scheme


def _codec(
    module: str,
    scheme: Scheme,
    parts: dict[str, StoredTensor],
    tensors: Mapping[str, StoredTensor],
    read: Read,
) -> Codec:
    name = f"{module}.weight"
    codes = parts["codes"]
    scale = part(tensors, f"{module}.weight_scale", name)
    if len(codes.shape) < 2 or not prod(codes.shape):
        raise misfit(codes, "two or more dimensions, none of them empty,", "it is a matrix")
    if not scheme.symmetric:
        part(tensors, f"{module}.weight_zero_point", name)
    if codes.dtype == "U8":
        return _float4(name, scheme, parts, tensors, read)
    if codes.dtype == "I32":
        return _int(name, scheme, parts, tensors, read)
    check_dtype(scale, *_FLOATS, *(["U8"] if codes.dtype == "F8_E4M3" else []))
    if scale.dtype == "U8" and (scheme.strategy, scheme.group) != ("group", 32):
        raise misfit(scale, "a float dtype", f"exponents scale groups of 32, not {scheme.words}")
    grid = _grid(codes, codes.shape, scheme, scale)
    zeros = parts.get("weight_zero_point")
    if zeros is not None:
        _check_zeros(zeros, scale)
    return OneByte(name, scheme, parts, grid)


def _float4(
    name: str,
    scheme: Scheme,
    parts: dict[str, StoredTensor],
    tensors: Mapping[str, StoredTensor],
    read: Read,
) -> Codec:
    codes, scale = parts["codes"], parts["weight_scale"]
    check_dtype(scale, "F8_E4M3", "U8")
    if len(codes.shape) != 2:
        raise misfit(codes, "two dimensions", "it holds 4-bit floats")
    size = 32 if scale.dtype == "U8" else 16
    if scheme.group != size:
        raise misfit(scale, f"groups of {size}", f"it is {scale.dtype} for {scheme.words}")
    grid = _grid(codes, (codes.shape[0], 2 * codes.shape[1]), scheme, scale)
    if scale.dtype == "U8" or (scheme.strategy == "group" and not parts.get("weight_global_scale")):
        if "weight_global_scale" in parts:
            raise leftover(parts["weight_global_scale"], "MXFP4 has no global scale")
        return PackedFloat4(name, scheme, parts, grid, None)
    whole = part(tensors, f"{name}_global_scale", name)
    check_dtype(whole, "F32")
    check_count(whole, 1, "it scales the whole tensor")
    value = float(read(whole, 0, 1))
    if not isfinite(value) or value <= 0:
        raise BadInput(
            f"Tensor {whole.name!r} is {value}, by which nothing can be divided.",
            why="The base was never calibrated, or the checkpoint is damaged.",
            hint="Download the base again, or merge into its unquantised original.",
        )
    return PackedFloat4(name, scheme, parts, grid, value)


def _int(
    name: str,
    scheme: Scheme,
    parts: dict[str, StoredTensor],
    tensors: Mapping[str, StoredTensor],
    read: Read,
) -> Codec:
    codes, scale = parts["codes"], parts["weight_scale"]
    check_dtype(scale, *_FLOATS)
    stated = part(tensors, f"{name}_shape", name)
    check_dtype(stated, "I64", "I32")
    check_count(stated, len(codes.shape), f"{codes.name!r} has shape {list(codes.shape)}")
    shape = tuple(int(n) for n in read(stated, 0, len(codes.shape)))
    words = -(-shape[-1] * scheme.bits // 32)
    if shape[-1] < 1 or codes.shape != (*shape[:-1], words):
        raise misfit(
            codes,
            f"shape {[*shape[:-1], words]}",
            f"{stated.name!r} states {list(shape)} in codes of {scheme.bits} bit",
        )
    grid = _grid(codes, shape, scheme, scale)
    zeros = parts.get("weight_zero_point")
    packed = not scheme.symmetric and scheme.strategy in ("group", "channel")
    if zeros is not None and packed:
        high = -(-shape[-2] * scheme.bits // 32)
        wanted = (*shape[:-2], high, grid.wide)
        check_dtype(zeros, "I32")
        if zeros.shape != wanted:
            raise misfit(zeros, f"shape {list(wanted)}", f"{codes.name!r} holds {list(shape)}")
    elif zeros is not None:
        _check_zeros(zeros, scale)
    if "weight_g_idx" in parts:
        _check_order(parts["weight_g_idx"], scheme, grid, read)
    return PackedInt(name, scheme, parts, shape, grid, packed)


def _check_order(order: StoredTensor, scheme: Scheme, grid: Grid, read: Read) -> None:
    """Each column must name a group, and each group have its columns (GPTQ's act-order)."""
    check_dtype(order, "I32", "I64")
    check_count(order, grid.columns, "it names the group of each column")
    groups = read(order, 0, grid.columns).to(torch.int64)
    wanted = torch.arange(grid.wide).repeat_interleave(grid.block_columns)
    if scheme.group is None or not torch.equal(groups.sort().values, wanted):
        raise BadInput(
            f"Tensor {order.name!r} does not put {grid.block_columns} columns into each of "
            f"{grid.wide} groups.",
            why="The base was saved without its order of columns, or the checkpoint is damaged.",
            hint=_ORIGINAL,
        )


def _check_zeros(zeros: StoredTensor, scale: StoredTensor) -> None:
    check_dtype(zeros, "I8")
    if zeros.shape != scale.shape:
        raise misfit(
            zeros, f"shape {list(scale.shape)}", f"{scale.name!r} has it, and both go together"
        )


def _grid(codes: StoredTensor, shape: tuple[int, ...], scheme: Scheme, scale: StoredTensor) -> Grid:
    """How the scales lie over the decoded shape; raises `BadInput` where they cannot."""
    *stack, rows, columns = shape
    because = f"{codes.name!r} holds {list(shape)} as {scheme.words}"
    if scheme.strategy == "tensor":
        check_count(scale, 1, because)
        return Grid(prod(shape[:-1]), columns, prod(shape[:-1]), columns)
    if scheme.strategy == "channel":
        grid = Grid(rows, columns, 1, columns)
    elif scheme.block is not None:
        grid = Grid(rows, columns, min(scheme.block[0], rows), min(scheme.block[1], columns))
        if stack:
            raise misfit(codes, "two dimensions", "it is quantised in blocks")
    else:
        size = scheme.group or columns
        if columns % size:
            raise misfit(codes, f"a multiple of {size} columns", because)
        grid = Grid(rows, columns, 1, size)
    if scale.shape != (*stack, grid.high, grid.wide):
        raise misfit(scale, f"shape {[*stack, grid.high, grid.wide]}", because)
    return grid
