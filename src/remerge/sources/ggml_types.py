"""ggml's tensor types and the mixtures of them that llama.cpp calls file types.

Numbers and block sizes are those of ggml.h and llama.h (llama.cpp, as llama-cpp-python 0.3.36
carries it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """How values are stored: ``block`` of them in ``nbytes``; ``number`` is ggml's."""

    name: str
    number: int
    block: int
    nbytes: int

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.nbytes


@dataclass(frozen=True)
class FileType:
    """A mixture by llama.cpp's name: ``default`` is the type of tensors without a rule."""

    name: str
    number: int
    default: str


_TYPES = (
    TensorType("F32", 0, 1, 4),
    TensorType("F16", 1, 1, 2),
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q2_K", 10, 256, 84),
    TensorType("Q3_K", 11, 256, 110),
    TensorType("Q4_K", 12, 256, 144),
    TensorType("Q5_K", 13, 256, 176),
    TensorType("Q6_K", 14, 256, 210),
    TensorType("IQ4_NL", 20, 32, 18),
    TensorType("IQ3_S", 21, 256, 110),
    TensorType("IQ4_XS", 23, 256, 136),
    TensorType("BF16", 30, 1, 2),
)
TYPES = {kind.name: kind for kind in _TYPES}

_FILE_TYPES = (
    FileType("F32", 0, "F32"),
    FileType("F16", 1, "F16"),
    FileType("BF16", 32, "BF16"),
    FileType("Q8_0", 7, "Q8_0"),
    FileType("Q6_K", 18, "Q6_K"),
    FileType("Q5_K_M", 17, "Q5_K"),
    FileType("Q5_K_S", 16, "Q5_K"),
    FileType("Q5_1", 9, "Q5_1"),
    FileType("Q5_0", 8, "Q5_0"),
    FileType("Q4_K_M", 15, "Q4_K"),
    FileType("Q4_K_S", 14, "Q4_K"),
    FileType("Q4_1", 3, "Q4_1"),
    FileType("Q4_0", 2, "Q4_0"),
    FileType("IQ4_NL", 25, "IQ4_NL"),
    FileType("IQ4_XS", 30, "IQ4_XS"),
    FileType("Q3_K_L", 13, "Q3_K"),
    FileType("Q3_K_M", 12, "Q3_K"),
    FileType("Q3_K_S", 11, "Q3_K"),
    FileType("IQ3_M", 27, "IQ3_S"),
    FileType("IQ3_S", 26, "IQ3_S"),
    FileType("Q2_K", 10, "Q2_K"),
)
FILE_TYPES = {kind.name: kind for kind in _FILE_TYPES}

# Where the next smaller block is another type's (tensor_type_fallback of llama-quant.cpp).
_SMALLER = {
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def fitting(name: str, columns: int) -> str:
    """The type, or the one that takes its place where rows are no whole number of its blocks."""
    if columns % TYPES[name].block == 0:
        return name
    smaller = _SMALLER.get(name, name)
    return smaller if columns % TYPES[smaller].block == 0 else "F16"
