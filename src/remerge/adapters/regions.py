"""Where a model's parameter lies in the checkpoint's tensors, block by block.

A model in memory and its checkpoint on disk need not agree: experts are stacked, q, k and v are
fused or split, weights are transposed. All of that is separable: rows of one matrix are rows (or
columns) of another. A `Region` states one such agreement.

Both sides are seen as matrices: a convolution ``(a, b, k, k)`` has ``a`` rows and ``b*k*k``
columns, a vector has one column, and a stack of expert matrices ``(E, a, b)`` has ``E*a`` rows
(expert ``e`` starts at row ``e*a``) and ``b`` columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# A range where the positions are evenly spaced, else an int64 vector.
Index = range | np.ndarray


def matrix_view(shape: Sequence[int], kind: str = "") -> tuple[int, int]:
    """Rows and columns under which a tensor of this shape is addressed.

    ``kind`` is that of the layer whose parameter it feeds (`Layer.kind`): only there does the
    weight ``(a, b, k)`` of a one-dimensional convolution differ from a stack of matrices.
    """
    if len(shape) < 2:
        return math.prod(shape), 1
    split = len(shape) - 1 if len(shape) == 3 and kind != "Conv1d" else 1
    return math.prod(shape[:split]), math.prod(shape[split:])


@dataclass(frozen=True)
class Region:
    """``tensor[rows, cols] == parameter[parameter_rows, parameter_cols]``, elementwise.

    With ``transposed`` the right-hand side is transposed first: ``rows`` then runs along
    ``parameter_cols`` and ``cols`` along ``parameter_rows``. All indices are into the matrix views
    described above; for a stacked parameter ``parameter_rows`` already includes the expert's
    offset.
    """

    tensor: str
    rows: Index
    cols: Index
    parameter: str
    parameter_rows: Index
    parameter_cols: Index
    transposed: bool = False


@dataclass(frozen=True)
class Layer:
    """A module of the model: what PEFT would wrap.

    ``kind`` is the torch or transformers class name that decides how a delta is laid out:
    ``Linear``, ``Conv1D``, ``Embedding``, ``Conv1d``, ``Conv2d``, ``Conv3d``,
    ``MultiheadAttention``, or any other class name for a module that only holds parameters.
    ``transposed``: its stacked parameters are ``(E, in, out)`` and not ``(E, out, in)``
    (transformers' ``is_transposed``), which the shape of a square matrix does not say.
    """

    kind: str
    groups: int = 1
    transposed: bool = False


class Names(Protocol):
    """What the adapter's names mean in this checkpoint."""

    def layer(self, module: str) -> Layer | None:
        """The module at this path of the model in memory, None where there is none."""
        ...

    def modules(self) -> Sequence[str]:
        """Paths of all modules, each once, in the model's own order; empty where no model told the
        names."""
        ...

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Shape of a parameter in memory, None where there is none."""
        ...

    def regions(self, parameter: str) -> tuple[Region, ...]:
        """Where the parameter lies on disk, together covering all of it; empty if the checkpoint
        does not hold it in this shape."""
        ...

    def tied(self, parameter: str) -> tuple[str, ...]:
        """Other parameters that share this one's memory in the model (lm_head and embedding)."""
        ...

    def checkpoint_name(self, parameter: str) -> str:
        """The name under which a parameter that the checkpoint lacks (an untied head, a new
        classifier) would be stored on disk."""
        ...
