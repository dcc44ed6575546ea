"""Run in llama.cpp's environment: importance matrices, as its `llama-imatrix` writes them.

For each tensor the mean square of what its columns were multiplied with, over a text: quantisers
keep what counts. Read as `llama-quantize` reads them (tools/quantize/quantize.cpp), both the GGUF
files of today and the older binary ones.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from remerge.errors import BadInput
from remerge.outputs.gguf.quantiser import Floats

_SUMS, _COUNTS = ".in_sum2", ".counts"
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def read_imatrix(path: Path) -> dict[str, Floats]:
    """Weights of the columns by the tensor's name in GGUF: float32 (experts, columns), one for all
    but stacked experts. Raises `BadInput` for a file that is none, or holds what is not finite."""
    try:
        with path.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
        found = _of_gguf(path) if is_gguf else _of_binary(path.read_bytes())
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, OSError) as error:
        raise BadInput(
            f"{path} is no importance matrix: {error}",
            hint="Make one with llama.cpp's llama-imatrix, from the merged model in F16.",
        ) from error
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise BadInput(f"{path} holds values for {name} that are not finite.")
    if not found:
        raise BadInput(f"{path} is an importance matrix of nothing.")
    return found


def weights_for(
    found: Mapping[str, Floats], shapes: Mapping[str, Sequence[int]], path: Path
) -> dict[str, Floats]:
    """The weights of those tensors that the file has, after checking that they fit.

    Raises `BadInput` where shapes differ: it was made from another model.
    """
    fitting: dict[str, Floats] = {}
    for name, values in found.items():
        shape = shapes.get(name)
        if shape is None:
            continue
        experts = shape[0] if len(shape) == 3 else 1
        if values.size == experts * shape[-1]:
            fitting[name] = values.reshape(experts, shape[-1])
        elif name not in _EMBEDDINGS:
            raise BadInput(
                f"{path} weighs {values.size} columns of {name}, which has shape {tuple(shape)}.",
                why="It was made from another model.",
            )
    if not fitting:
        raise BadInput(
            f"{path} names no tensor of this model.", why="It was made from another model."
        )
    return fitting


def _of_gguf(path: Path) -> dict[str, Floats]:
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    found: dict[str, Floats] = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        counts = tensors[name.removesuffix(_SUMS) + _COUNTS].reshape(-1, 1).astype(np.float32)
        rows = sums.astype(np.float32).reshape(len(counts), -1)
        # An expert that the text never reached counts all of its columns alike.
        means = np.divide(rows, counts, out=np.ones_like(rows), where=counts > 0)
        found[name.removesuffix(_SUMS)] = means
    return found


def _of_binary(content: bytes) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    (entries,), place = struct.unpack_from("<i", content), 4
    for _ in range(entries):
        (length,) = struct.unpack_from("<i", content, place)
        name = content[place + 4 : place + 4 + length].decode()
        calls, values = struct.unpack_from("<ii", content, place + 4 + length)
        place += 12 + length
        if length < 1 or values < 1:
            raise ValueError("an entry without a name or without values")
        sums = np.frombuffer(content, "<f4", values, place)
        found[name] = (sums / max(calls, 1)).astype(np.float32)
        place += 4 * values
    return found
