"""What the weights of a model take, as stored and as loaded."""

from __future__ import annotations

from dataclasses import dataclass

from remerge.sources.checkpoint import Checkpoint
from remerge.sources.gguf_header import GgufHeader

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Types whose matrices ggml's processor backend lays out anew in memory of its own, beside the
# mapped file: Q4_0 and Q4_K were seen to on AVX2 ("CPU_REPACK model buffer size").
_REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "IQ4_XS", "type 39")


@dataclass(frozen=True)
class Weights:
    """``largest_file`` is the bytes of the largest. Of ``floats`` elements in 16 or 32 bits the
    bytes follow the dtype computed with; ``other`` bytes (quantised, whole numbers) stay.
    ``repacked`` bytes of a GGUF file are in memory twice. ``parameters`` take part in a token,
    experts not chosen left out; ``widest`` is the bytes of the largest tensor, and ``edges`` the
    rows and columns of all matrices."""

    largest_file: int
    floats: int
    other: int
    parameters: int
    widest: int = 0
    repacked: int = 0
    stored_floats: int = 0
    edges: int = 0

    def loaded(self, element_bytes: int | None) -> int:
        """In memory, with floats in so many bytes (None: as stored)."""
        if element_bytes is None:
            return self.stored_floats + self.other
        return self.floats * element_bytes + self.other


def weights_of(checkpoint: Checkpoint, *, chosen: float = 1.0) -> Weights:
    """Of a checkpoint's headers; ``chosen`` is the share of its experts that a token uses."""
    floats = other = stored_floats = widest = edges = 0
    parameters = 0.0
    for name, tensor in checkpoint.tensors.items():
        widest = max(widest, tensor.nbytes)
        elements = 1
        for size in tensor.shape:
            elements *= size
        share = chosen if ".experts." in name else 1.0
        if len(tensor.shape) > 1:
            rows, columns = tensor.shape[-2:]
            edges += (rows + columns) * (elements // max(1, rows * columns))
        if tensor.dtype in _FLOATS:
            floats += elements
            stored_floats += tensor.nbytes
            parameters += elements * share
        else:
            other += tensor.nbytes
            # Two values a byte is what most packed formats hold.
            parameters += tensor.nbytes * 2 * share
    return Weights(
        largest_file=max(shard.size for shard in checkpoint.shards),
        floats=floats,
        other=other,
        parameters=int(parameters),
        widest=widest,
        stored_floats=stored_floats,
        edges=edges,
    )


def weights_of_gguf(header: GgufHeader, *, chosen: float = 1.0) -> Weights:
    """Of a GGUF file's header: loaded as it lies."""
    parameters, nbytes, widest, repacked = 0.0, 0, 0, 0
    for name, tensor in header.tensors.items():
        size = tensor.stop - tensor.start
        elements = 1
        for length in tensor.shape:
            elements *= length
        nbytes += size
        widest = max(widest, size)
        parameters += elements * (chosen if "_exps." in name else 1.0)
        if tensor.type in _REPACKED and len(tensor.shape) > 1 and "embd" not in name:
            repacked += size
    end = max((tensor.stop for tensor in header.tensors.values()), default=0)
    return Weights(end, 0, nbytes, int(parameters), widest, repacked)
