"""What a scheme is: how compressed-tensors calls it, and the codec that writes a matrix in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec
from remerge.sources.codecs.schemes import Scheme, read_schemes
from remerge.sources.dtypes import itemsize

# The version of compressed-tensors whose presets and numbers these are.
VERSION = "0.19.0"

# Fields of its QuantizationArgs with their defaults, in its order.
_DEFAULTS: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "group_size": None,
    "strategy": None,
    "block_structure": None,
    "dynamic": False,
    "actorder": None,
    "scale_dtype": None,
    "zp_dtype": None,
    "observer": None,
    "observer_kwargs": {},
}


@dataclass(frozen=True)
class WeightScheme:
    """A scheme that needs no data.

    ``name`` is what follows ``--to``, ``preset`` and ``format`` what compressed-tensors calls it.
    ``weights`` and ``activations`` are the preset's arguments where they are no defaults.
    ``codec`` makes what writes a tensor, from the tensor's name, its shape (rows, columns) and the
    dtype of scales. Columns must be a multiple of ``columns``, and so must be the rows of a layer
    that engines put on top of others, of ``rows``. ``experts``: transformers reads experts in it;
    ``runs``: the only dtype in which transformers runs a model in it.
    """

    name: str
    preset: str
    format: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None
    codec: Callable[[Scheme, str, tuple[int, int], str], Codec]
    columns: int = 1
    rows: int = 1
    experts: bool = False
    runs: str | None = None

    @property
    def float8(self) -> bool:
        """Whether the codes are float8."""
        return self.weights.get("type") == "float" and self.weights.get("num_bits", 8) == 8

    def group(self, targets: Sequence[str]) -> dict[str, Any]:
        """The config group of these targets, as compressed-tensors writes it."""
        return {
            "targets": list(targets),
            "weights": {**_DEFAULTS, **self.weights},
            "input_activations": None
            if self.activations is None
            else {**_DEFAULTS, **self.activations},
            "output_activations": None,
            "format": self.format,
        }

    def encoder(self, name: str, shape: tuple[int, int], dtype: str) -> Codec:
        """What writes the tensor of this name and shape; ``dtype`` is that of float scales."""
        stated = read_schemes({"config_groups": {"group_0": self.group(["Linear"])}})
        return self.codec(next(iter(stated.all)), name, shape, dtype)


def new_part(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that will be stored: its place is the layout's concern."""
    return StoredTensor(name, "", dtype, shape, 0, prod(shape) * itemsize(dtype))
