"""Run in llama.cpp's environment: a GGUF file written from front to back.

Types and places of all tensors are known before the first value, so the header goes first; then
blocks of rows are computed and quantised by all threads, and written in order.
"""

# llama.cpp's packages have no types, and lie in an environment of their own.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import torch
from gguf.gguf_writer import WriterState
from gguf.quants import dequantize

from remerge.engines.calling import Report
from remerge.engines.gguf_values import rows_of
from remerge.errors import BadInput
from remerge.merging.ordered import in_order
from remerge.outputs.gguf.quantiser import Bytes, Floats, Quantiser, not_finite
from remerge.sources.ggml_types import TYPES, TensorType

# Values that a thread has at hand at once, and of each tensor the ones whose loss is measured.
_ELEMENTS = 2**21
_MEASURED = 2**16
_FLUSHED = 2**27
# What ggml makes of these is IEEE's rounding, and torch does it faster.
_CASTS = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Contents:
    """What goes into the file: the converter's writer (its metadata and names), the tensors as it
    gave them and their types, both in the file's order, and weights of columns by tensor."""

    writer: Any
    lazy: Mapping[str, Any]
    types: Mapping[str, str]
    imatrix: Mapping[str, Floats] = field(default_factory=dict[str, Floats])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.lazy[name].shape)


@dataclass(frozen=True)
class Loss:
    """How far quantised values are from what they stand for: sums of squares over a sample."""

    missed: float = 0.0
    power: float = 0.0

    @classmethod
    def between(cls, values: Floats, found: Floats) -> Loss:
        missed, power = (
            float(np.square(difference, dtype=np.float64).sum())
            for difference in (values - found, values)
        )
        return cls(missed, power)

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.missed + other.missed, self.power + other.power)

    @property
    def relative(self) -> float:
        """Root mean square of the differences, over that of the values."""
        return math.sqrt(self.missed / self.power) if self.power else 0.0


@dataclass(frozen=True)
class Written:
    """The file's SHA-256 and size, and what quantising lost."""

    sha256: str
    size: int
    loss: float


@dataclass(frozen=True)
class _Piece:
    """A block of rows of one tensor of the file, and the weights of its columns."""

    name: str
    kind: TensorType
    first: int
    ends: bool
    rows: Callable[[], Floats]
    weights: Floats | None


def write_gguf(
    path: Path, contents: Contents, quantiser: Quantiser, threads: int, report: Report
) -> Written:
    """Write the file and make it durable; raises `BadInput` for values that a type cannot hold."""
    sizes = {n: _nbytes(contents.shape(n), TYPES[k]) for n, k in contents.types.items()}
    total = sum(map(_aligned, sizes.values()))
    done, loss = 0, Loss()
    with path.open("wb") as stream, _flushing(stream) as flush:
        start = header(contents.writer, contents.types, sizes)
        stream.write(start)
        digest = hashlib.sha256(start)
        for piece, block, lost in in_order(
            _pieces(contents), partial(_compute, quantiser), threads
        ):
            loss = loss + lost
            padding = -sizes[piece.name] % gguf.GGUF_DEFAULT_ALIGNMENT if piece.ends else 0
            for part in (block.reshape(-1).data, bytes(padding)):
                stream.write(part)
                digest.update(part)
            done += block.nbytes + padding
            flush(block.nbytes)
            report(done, total, piece.name)
        stream.flush()
        if str(path) != os.devnull:
            os.fsync(stream.fileno())
    return Written(digest.hexdigest(), len(start) + total, loss.relative)


@contextmanager
def _flushing(stream: IO[bytes]) -> Generator[Callable[[int], None]]:
    """Have what was written go to disk while more is computed, not all of it at the end."""
    waiting = 0
    with ThreadPoolExecutor(1) as pool:

        def wrote(nbytes: int) -> None:
            nonlocal waiting
            waiting += nbytes
            if waiting >= _FLUSHED and stream.name != os.devnull:
                waiting = 0
                stream.flush()
                pool.submit(os.fdatasync, stream.fileno())

        yield wrote


def header(writer: Any, types: Mapping[str, str], sizes: Mapping[str, int]) -> bytes:
    """Everything before the tensors, with their places. The writer is left as it was."""
    known = writer.tensors[0]
    infos = {name: known[name] for name in types}
    for name, kind in types.items():
        infos[name].dtype = gguf.GGMLQuantizationType(TYPES[kind].number)
        infos[name].nbytes = sizes[name]
    memory = io.BytesIO()
    kept = writer.fout, writer.state
    writer.tensors[0] = infos
    writer.fout, writer.state = [memory], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.tensors[0] = known
    writer.fout, writer.state = kept
    found = memory.getvalue()
    return found + bytes(-len(found) % gguf.GGUF_DEFAULT_ALIGNMENT)


def _pieces(contents: Contents) -> Iterator[_Piece]:
    """The file's rows in order, a few at a time, no piece across two experts of another weight."""
    for name, kind in contents.types.items():
        shape = contents.shape(name)
        count, step = math.prod(shape[:-1]), max(1, _ELEMENTS // max(shape[-1], 1))
        weights = contents.imatrix.get(name)
        each = shape[-2] if weights is not None and len(shape) == 3 else max(count, 1)
        rows = rows_of(contents.lazy[name])
        for start in range(0, count, each):
            for first in range(start, start + each, step):
                last = min(first + step, start + each)
                own = None if weights is None else weights[start // each]
                yield _Piece(
                    name, TYPES[kind], first, last == count, partial(rows.read, first, last), own
                )


def _compute(quantiser: Quantiser, piece: _Piece) -> tuple[_Piece, Bytes, Loss]:
    rows = np.ascontiguousarray(piece.rows(), dtype=np.float32)
    if piece.kind.name == "F32":
        return piece, rows.view(np.uint8), Loss()
    try:
        cast = piece.kind.name in _CASTS
        found = (
            _cast(piece.kind, rows) if cast else quantiser.quantise(rows, piece.kind, piece.weights)
        )
    except BadInput as error:
        raise BadInput(f"{piece.name}: {error}") from error
    if piece.first > 0:
        return piece, found, Loss()
    sample = slice(0, max(1, _MEASURED // rows.shape[1]))
    kind = gguf.GGMLQuantizationType(piece.kind.number)
    return piece, found, Loss.between(rows[sample], dequantize(found[sample], kind))


def _cast(kind: TensorType, rows: Floats) -> Bytes:
    found = torch.from_numpy(rows).to(_CASTS[kind.name])
    if not bool(torch.isfinite(found).all()):
        raise not_finite(kind)
    return found.view(torch.uint8).numpy()


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % gguf.GGUF_DEFAULT_ALIGNMENT


def _nbytes(shape: Sequence[int], kind: TensorType) -> int:
    return math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
