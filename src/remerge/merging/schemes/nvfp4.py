"""Four-bit floats with a float8 scale for 16 columns and a float32 scale for the tensor.

Weights alone: scales of NVFP4 activations need calibration with data. Layers that engines fuse get
one tensor's scale together, that of the largest value among them: vLLM applies one to all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from remerge.merging.schemes.scheme import WeightScheme, new_part
from remerge.sources.codecs import float4
from remerge.sources.codecs.codec import Codec, Values
from remerge.sources.codecs.grid import Grid, largest
from remerge.sources.codecs.packed_float4 import PackedFloat4
from remerge.sources.codecs.schemes import Scheme

_GROUP = 16
_FLOAT8_MAX = 448.0


@dataclass(frozen=True)
class NewFloat4(PackedFloat4):
    """A matrix that had no global scale before. Parts: ``codes`` U8 (rows, columns / 2),
    ``weight_scale`` F8_E4M3 (rows, columns / 16), ``weight_global_scale`` F32 (1,)."""

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        rows, columns = self.shape
        return {"largest": largest(Grid(rows, columns, rows, columns), values, 0, 1).view(1)}

    def joined(self, found: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The global scale, from what was measured of this tensor and of those that share it:
        `generate_gparam` of compressed_tensors quantization/utils/helpers.py."""
        together = torch.cat([each["largest"] for each in found]).amax(dim=0, keepdim=True)
        scale = _FLOAT8_MAX * float4.LARGEST / together.clamp(min=torch.finfo(torch.float32).tiny)
        return {"global": torch.nan_to_num(scale, nan=1.0, posinf=1.0, neginf=1.0)}


def _codec(scheme: Scheme, name: str, shape: tuple[int, int], dtype: str) -> Codec:
    rows, columns = shape
    parts = {
        "codes": new_part(f"{name}_packed", "U8", (rows, columns // 2)),
        "weight_scale": new_part(f"{name}_scale", "F8_E4M3", (rows, columns // _GROUP)),
        "weight_global_scale": new_part(f"{name}_global_scale", "F32", (1,)),
    }
    return NewFloat4(name, scheme, parts, Grid(rows, columns, 1, _GROUP), None)


NVFP4 = WeightScheme(
    name="nvfp4",
    preset="NVFP4A16",
    format="nvfp4-pack-quantized",
    weights={
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": _GROUP,
        "scale_dtype": "torch.float8_e4m3fn",
    },
    activations=None,
    codec=_codec,
    columns=_GROUP,
    # `unpack_fp4_from_uint8` of compressed_tensors gives nothing else.
    runs="BF16",
)
