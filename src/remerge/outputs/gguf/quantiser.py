"""ggml's own quantisers, from a package that carries them compiled."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from remerge.errors import BadInput, Unsupported
from remerge.sources.ggml_types import TensorType

# Packages that carry them, as they are imported and as they are published, the best first: the
# libraries of two export them, though neither promises to; cyllama quantises files.
_PACKAGES = {
    "xllamacpp": "xllamacpp",
    "cyllama": "cyllama",
    "llama_cpp": "llama-cpp-python",
}
_SYMBOLS = ("ggml_quantize_chunk", "ggml_quantize_init", "ggml_row_size", "ggml_validate_row_data")

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Quantiser(Protocol):
    """Quantisers of ggml's, and the distribution that they came with."""

    @property
    def package(self) -> str: ...

    def quantise(self, rows: Floats, kind: TensorType, imatrix: Floats | None = None) -> Bytes:
        """Rows (n, columns) as ggml stores them: (n, bytes of a row).

        ``imatrix`` weights the columns. Raises `BadInput` for values that the type cannot hold.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """The functions of a library that exports them."""

    package: str
    library: Any

    def quantise(self, rows: Floats, kind: TensorType, imatrix: Floats | None = None) -> Bytes:
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        # ggml's own check sees what it has made, and of a NaN some types make a number.
        if not np.isfinite(rows).all():
            raise not_finite(kind)
        count, columns = rows.shape
        found = np.empty((count, kind.row_bytes(columns)), np.uint8)
        weights = None if imatrix is None else imatrix.ctypes.data
        self.library.ggml_quantize_chunk(
            kind.number, rows.ctypes.data, found.ctypes.data, 0, count, columns, weights
        )
        if not self.library.ggml_validate_row_data(kind.number, found.ctypes.data, found.nbytes):
            raise not_finite(kind)
        return found


def not_finite(kind: TensorType) -> BadInput:
    """What is said of values that ggml's own check refuses."""
    return BadInput(f"{kind.name} cannot hold these values: some are not finite in it.")


def open_quantiser() -> Quantiser:
    """That of the first package that is installed and has what is needed; raises `Unsupported`."""
    for module, package in _PACKAGES.items():
        if module == "cyllama":
            if importlib.util.find_spec(module) is not None:
                from remerge.outputs.gguf.file_quantiser import FileQuantiser

                return FileQuantiser(package)
            continue
        for path in _libraries(module):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            if all(hasattr(library, symbol) for symbol in _SYMBOLS):
                return Exported(package, _typed(library))
    raise Unsupported(
        f"No quantisers of ggml's: of {', '.join(_PACKAGES.values())} none is installed whose "
        "libraries export them.",
        why="Another version, or the build for another platform, may hide them.",
        hint="Run: remerge engines install llama.cpp. With an interpreter of your own, install "
        "cyllama there: it quantises without them.",
    )


def _libraries(module: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(p for p in Path(folder).rglob("*") if p.suffix in (".so", ".dylib"))


def _typed(library: Any) -> Any:
    number, place, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [number, place, place, count, count, count, place]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [number, place, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_row_size.argtypes = [number, count]
    library.ggml_row_size.restype = ctypes.c_size_t
    return library
