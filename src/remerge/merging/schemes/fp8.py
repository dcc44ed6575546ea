"""float8 weights with a scale for each row; activations are scaled as they come, token by token."""

from __future__ import annotations

from remerge.merging.schemes.one_byte import one_byte
from remerge.merging.schemes.scheme import WeightScheme

FP8 = WeightScheme(
    name="fp8",
    preset="FP8_DYNAMIC",
    format="float-quantized",
    weights={"type": "float", "strategy": "channel"},
    activations={"type": "float", "strategy": "token", "dynamic": True},
    codec=one_byte,
    experts=True,
)
