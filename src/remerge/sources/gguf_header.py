"""The header of a GGUF file, read strictly and within bounds: metadata, and where each tensor lies.

Versions 2 and 3, in either byte order (docs/gguf.md of ggml; what llama.cpp's own reader refuses is
refused here). A file from anywhere may claim 2^60 keys or a string of as many bytes: nothing is
allocated for a claim that the file's size does not bear out, and no tensor is read.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import BadInput, TryAgain
from remerge.sources.ggml_types import TYPES

MAGIC = b"GGUF"
MAX_HEADER = 100_000_000
_MAX_KEYS = 65_536
_MAX_TENSORS = 100_000
_MAX_STRING = 2**23
_MAX_ITEMS = 4_000_000
_MAX_DIMENSIONS = 4
# What a value of metadata keeps of an array: its items, or their digest.
_KEPT_ITEMS = 64
_ALIGNMENT = "general.alignment"

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_BY_NUMBER = {kind.number: kind for kind in TYPES.values()}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: ggml's name of its type (``type 39`` where that is not known here), its shape
    with rows before columns, and its bytes ``[start, stop)`` of the file. ``stop`` of a type that
    is not known is where the next tensor starts."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class LongArray:
    """An array of metadata that is not kept: how many items, and the SHA-256 of their bytes."""

    items: int
    sha256: str


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key (numbers, booleans, strings, tuples of these, `LongArray`) and tensors by
    name in the order of their bytes."""

    version: int
    big_endian: bool
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def text(self, key: str) -> str | None:
        """A value that is a string, else None."""
        found = self.metadata.get(key)
        return found if isinstance(found, str) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """The strings of an array, else none."""
        found = self.metadata.get(key)
        return tuple(x for x in found if isinstance(x, str)) if isinstance(found, tuple) else ()  # pyright: ignore[reportUnknownVariableType]


class _Malformed(Exception):
    pass


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file; raises `BadInput` for anything else than a regular file with
    a valid one, `TryAgain` where the device fails."""
    try:
        # A FIFO would block an ordinary open for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"Cannot open {path}: {error.strerror}.") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is not a regular file.", why="Weights come from files only.")
        return _read(fd, status.st_size)
    except _Malformed as error:
        raise BadInput(
            f"{path} is not a valid GGUF file: {error}.",
            why="The file is damaged, incomplete or made to mislead.",
            hint="Download or make it again.",
        ) from error
    except OSError as error:
        raise TryAgain(f"Reading {path} failed: {error.strerror}.") from error
    finally:
        os.close(fd)


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


class _Cursor:
    """Reads forwards, a block at a time; every length is checked against what is left."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._end = min(size, MAX_HEADER)
        self._short = size <= MAX_HEADER
        self._buffer = b""
        self._start = 0
        self.position = 0
        self.order = "<"

    @property
    def left(self) -> int:
        return self._end - self.position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Malformed(
                "its header ends before its stated length"
                if self._short
                else f"its header has more than {MAX_HEADER:,} bytes"
            )
        at = self.position - self._start
        if at + count > len(self._buffer):
            self._buffer = self._read(max(count, 2**20))
            self._start, at = self.position, 0
        if at + count > len(self._buffer):
            raise _Malformed("it was cut short while it was read")
        self.position += count
        return self._buffer[at : at + count]

    def number(self, code: str) -> Any:
        (found,) = struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))
        return found

    def string_bytes(self) -> bytes:
        length = self.number("Q")
        if length > min(_MAX_STRING, self.left):
            raise _Malformed(f"a string claims {length:,} bytes")
        return self.take(length)

    def string(self) -> str:
        return self.string_bytes().decode("utf-8", "backslashreplace")

    def _read(self, count: int) -> bytes:
        parts: list[bytes] = []
        count = min(count, self.left)
        while count:
            part = os.pread(self._fd, count, self.position + sum(map(len, parts)))
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _read(fd: int, size: int) -> GgufHeader:
    cursor = _Cursor(fd, size)
    if size < 24 or cursor.take(4) != MAGIC:
        raise _Malformed("it does not begin with GGUF and a header")
    version, big_endian = cursor.number("I"), False
    if version & 0xFFFF == 0:
        big_endian, cursor.order = True, ">"
        version = int.from_bytes(struct.pack("<I", version), "big")
    if version not in (2, 3):
        raise _Malformed(f"its version is {version}, where 2 and 3 are known")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    # A key takes 13 bytes at least, a tensor 28.
    if keys > min(_MAX_KEYS, cursor.left // 13) or tensors > min(_MAX_TENSORS, cursor.left // 28):
        raise _Malformed(f"it claims {keys:,} keys and {tensors:,} tensors")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.string()
        if key in metadata:
            raise _Malformed(f"it states {key[:100]!r} twice")
        metadata[key] = _value(cursor, cursor.number("I"))
    stated = [_stated(cursor) for _ in range(tensors)]
    return GgufHeader(
        version, big_endian, metadata, _laid_out(stated, metadata, cursor.position, size)
    )


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _array(cursor)
    if kind not in _SCALARS:
        raise _Malformed(f"a value of metadata has the unknown type {kind}")
    found = cursor.number(_SCALARS[kind])
    if kind == _BOOL and found not in (0, 1):
        raise _Malformed(f"a boolean is {found}")
    return bool(found) if kind == _BOOL else found


def _array(cursor: _Cursor) -> Any:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind != _STRING and kind not in _SCALARS:
        raise _Malformed(f"an array has items of the type {kind}")
    width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
    if count > min(_MAX_ITEMS, cursor.left // width):
        raise _Malformed(f"an array claims {count:,} items")
    if count <= _KEPT_ITEMS:
        return tuple(_value(cursor, kind) for _ in range(count))
    digest = hashlib.sha256()
    if kind != _STRING:
        digest.update(cursor.take(count * width))
        return LongArray(count, digest.hexdigest())
    for _ in range(count):
        item = cursor.string_bytes()
        digest.update(struct.pack("<Q", len(item)) + item)
    return LongArray(count, digest.hexdigest())


def _stated(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, shape and offset of a tensor, as the header states them."""
    name, dimensions = cursor.string(), cursor.number("I")
    if not name or dimensions > _MAX_DIMENSIONS:
        raise _Malformed(f"tensor {name[:100]!r} has {dimensions} dimensions")
    sizes = tuple(cursor.number("Q") for _ in range(dimensions))
    if math.prod(sizes) >= 2**63:
        raise _Malformed(f"tensor {name[:100]!r} has a shape too large to exist")
    return name, cursor.number("I"), sizes, cursor.number("Q")


def _laid_out(
    stated: list[tuple[str, int, tuple[int, ...], int]],
    metadata: Mapping[str, Any],
    position: int,
    size: int,
) -> dict[str, GgufTensor]:
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise _Malformed(f"its alignment is {alignment!r}, no power of two")
    data = -(-position // alignment) * alignment
    stated.sort(key=lambda tensor: tensor[3])
    found: dict[str, GgufTensor] = {}
    for number, (name, kind, sizes, offset) in enumerate(stated):
        start = data + offset
        follows = data + stated[number + 1][3] if number + 1 < len(stated) else size
        stop, known = follows, _BY_NUMBER.get(kind)
        if known is not None:
            if (sizes[0] if sizes else 1) % known.block:
                raise _Malformed(f"tensor {name[:100]!r} has rows of no whole number of blocks")
            stop = start + math.prod(sizes) // known.block * known.nbytes
        if name in found:
            raise _Malformed(f"it states the tensor {name[:100]!r} twice")
        if offset % alignment or stop > size or start > size:
            raise _Malformed(f"tensor {name[:100]!r} lies at {start:,} to {stop:,} of {size:,}")
        if stop > follows:
            raise _Malformed(f"tensor {name[:100]!r} overlaps the next")
        title = known.name if known is not None else f"type {kind}"
        found[name] = GgufTensor(title, sizes[::-1], start, stop)
    return found
