"""ggml's own quantisers, from a package that carries them compiled."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from remerge.errors import BadInput, Unsupported
from remerge.sources.ggml_types import TensorType

# Packages whose libraries export ggml's quantisers, though none promises to.
_PACKAGES = ("xllamacpp", "llama_cpp")
_SYMBOLS = ("ggml_quantize_chunk", "ggml_quantize_init", "ggml_row_size", "ggml_validate_row_data")

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Quantiser:
    """The library's functions, and the package it came with."""

    package: str
    library: Any

    def quantise(self, rows: Floats, kind: TensorType, imatrix: Floats | None = None) -> Bytes:
        """Rows (n, columns) as ggml stores them: (n, bytes of a row).

        ``imatrix`` weights the columns. Raises `BadInput` for values that the type cannot hold.
        """
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        count, columns = rows.shape
        found = np.empty((count, kind.row_bytes(columns)), np.uint8)
        weights = None if imatrix is None else imatrix.ctypes.data
        self.library.ggml_quantize_chunk(
            kind.number, rows.ctypes.data, found.ctypes.data, 0, count, columns, weights
        )
        if not self.library.ggml_validate_row_data(kind.number, found.ctypes.data, found.nbytes):
            raise BadInput(f"{kind.name} cannot hold these values: some are not finite in it.")
        return found


def open_quantiser() -> Quantiser:
    """The first package that is installed and exports what is needed; raises `Unsupported`."""
    for package in _PACKAGES:
        for path in _libraries(package):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            if all(hasattr(library, symbol) for symbol in _SYMBOLS):
                return Quantiser(package, _typed(library))
    raise Unsupported(
        f"None of {', '.join(_PACKAGES)} exports ggml's quantisers.",
        hint="Run: remerge engines install llama.cpp",
    )


def _libraries(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).rglob("*.so"))


def _typed(library: Any) -> Any:
    number, place, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [number, place, place, count, count, count, place]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [number, place, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_row_size.argtypes = [number, count]
    library.ggml_row_size.restype = ctypes.c_size_t
    return library
