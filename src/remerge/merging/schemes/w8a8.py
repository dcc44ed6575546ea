"""int8 weights with a scale for each row; activations are scaled as they come, token by token."""

from __future__ import annotations

from remerge.merging.schemes.one_byte import one_byte
from remerge.merging.schemes.scheme import WeightScheme

W8A8 = WeightScheme(
    name="w8a8",
    preset="W8A8",
    format="int-quantized",
    weights={"strategy": "channel"},
    activations={"strategy": "token", "dynamic": True},
    codec=one_byte,
)
