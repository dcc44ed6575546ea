"""float8 weights with a scale for each block of 128 x 128; activations in groups of 128.

vLLM scales activations in groups of 128, so columns must divide, and it puts query, key and value
(gate and up) on top of each other, so that their rows must as well (`validate_fp8_block_shape` of
its layers/quantization/utils/fp8_utils.py).
"""

from __future__ import annotations

from remerge.merging.schemes.one_byte import one_byte
from remerge.merging.schemes.scheme import WeightScheme

FP8_BLOCK = WeightScheme(
    name="fp8-block",
    preset="FP8_BLOCK",
    format="float-quantized",
    weights={"type": "float", "strategy": "block", "block_structure": [128, 128]},
    activations={"type": "float", "strategy": "group", "group_size": 128, "dynamic": True},
    codec=one_byte,
    columns=128,
    rows=128,
)
