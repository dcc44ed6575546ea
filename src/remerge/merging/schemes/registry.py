"""The schemes by name. A new one is one file of this package and one entry here."""

from __future__ import annotations

from remerge.merging.schemes.fp8 import FP8
from remerge.merging.schemes.fp8_block import FP8_BLOCK
from remerge.merging.schemes.nvfp4 import NVFP4
from remerge.merging.schemes.scheme import WeightScheme
from remerge.merging.schemes.w8a8 import W8A8

SCHEMES: dict[str, WeightScheme] = {s.name: s for s in (FP8, FP8_BLOCK, W8A8, NVFP4)}
