"""The registry of quantised formats, and which tensors of a checkpoint are stored in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remerge.errors import Unsupported
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs import awq, bitsandbytes, block_fp8, compressed_tensors, gptq, mxfp4
from remerge.sources.codecs.codec import Codec, Find, Read
from remerge.sources.codecs.stated import quantisation_stated


@dataclass(frozen=True)
class Format:
    """A quantised format: its ``quant_method`` in config.json, pieces of tensor names that give it
    away where config.json is silent, and what finds its tensors."""

    method: str
    traces: tuple[str, ...]
    find: Find


FORMATS: tuple[Format, ...] = (
    Format("fp8", ("_scale_inv",), block_fp8.find),
    Format("mxfp4", ("_proj_blocks",), mxfp4.find),
    Format("compressed-tensors", (".weight_packed",), compressed_tensors.find),
    Format("bitsandbytes", (".quant_state.bitsandbytes__", ".SCB"), bitsandbytes.find),
    Format("gptq", (".g_idx",), gptq.find),
    Format("awq", (".qweight",), awq.find),
)


def find_codecs(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read
) -> dict[str, Codec]:
    """The quantised tensors by the names they would have unquantised; {} for a plain checkpoint.

    Raises `BadInput` and `Unsupported` as `Find` does, and for a ``quant_method`` not known here.
    """
    method = quantisation_stated(config).get("quant_method")
    if method is not None:
        found = next((f for f in FORMATS if f.method == method), None)
        if found is None:
            raise Unsupported(
                f"The base is quantised with {method}, which is not read here.",
                why="Formats that are: " + ", ".join(f.method for f in FORMATS) + ".",
                hint="Merge into the unquantised original of this base.",
            )
        return {codec.name: codec for codec in found.find(config, tensors, read)}
    for format in FORMATS:
        if any(trace in name for name in tensors for trace in format.traces):
            return {codec.name: codec for codec in format.find(config, tensors, read)}
    return {}
