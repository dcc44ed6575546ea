"""Matrices in codes of one byte: the codec that reads them writes them as well."""

from __future__ import annotations

from remerge.merging.schemes.scheme import new_part
from remerge.sources.codecs.codec import Codec
from remerge.sources.codecs.grid import Grid
from remerge.sources.codecs.one_byte import OneByte
from remerge.sources.codecs.schemes import Scheme


def one_byte(scheme: Scheme, name: str, shape: tuple[int, int], dtype: str) -> Codec:
    """A matrix with a scale of ``dtype`` for each row, or for each block of the scheme."""
    rows, columns = shape
    high, wide = scheme.block or (1, columns)
    grid = Grid(rows, columns, min(high, rows), min(wide, columns))
    codes = "I8" if scheme.kind == "int" else "F8_E4M3"
    parts = {
        "codes": new_part(name, codes, shape),
        "weight_scale": new_part(f"{name}_scale", dtype, (grid.high, grid.wide)),
    }
    return OneByte(name, scheme, parts, grid)
