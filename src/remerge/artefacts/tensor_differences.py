"""Which tensors of two artefacts differ: by name, whatever files they lie in, read in ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remerge.errors import BadInput
from remerge.sources.dtypes import BITS
from remerge.sources.ggml_types import TYPES
from remerge.sources.gguf_header import GgufHeader, read_gguf_header
from remerge.sources.header import read_header
from remerge.sources.storage import InputFile, aligned_buffer

Report = Callable[[int, int, str], None]
_RANGE = 2**24


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor in a file: its type and shape, bytes ``[start, stop)``, and of how many bytes the
    pieces are that can differ alone: elements, or blocks."""

    file: str
    type: str
    shape: tuple[int, ...]
    start: int
    stop: int
    unit: int

    @property
    def title(self) -> str:
        return f"{self.type} {list(self.shape)}"


@dataclass(frozen=True)
class TensorChange:
    """A tensor that both have: its type and shape on either side, and of tensors of one type and
    shape how many of its elements (of quantised ones: blocks) differ."""

    name: str
    a: str
    b: str
    differing: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class TensorDifferences:
    """``compared`` were read or known by the digest of their file; ``same`` of them are equal."""

    compared: int
    same: int
    changed: tuple[TensorChange, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """The files of a side: where they lie, and the digests of those that a store vouches for."""

    files: Mapping[str, Path]
    digests: Mapping[str, str]


def tensors_of(contents: Contents) -> dict[str, Located]:
    """Every tensor of the safetensors and GGUF files by its name; one that several files have bears
    the file's name as well. Raises `BadInput` for a damaged header."""
    found: dict[str, Located] = {}
    for name, path in contents.files.items():
        located: dict[str, Located] = {}
        if path.suffix == ".safetensors" or name.endswith(".safetensors"):
            for tensor, info in (header := read_header(path)).tensors.items():
                at, unit = header.data_offset, max(BITS[info.dtype] // 8, 1)
                start, stop = at + info.start, at + info.stop
                located[tensor] = Located(name, info.dtype, info.shape, start, stop, unit)
        elif name.endswith(".gguf"):
            for tensor, about in read_gguf_header(path).tensors.items():
                kind = TYPES.get(about.type)
                unit = 1 if kind is None else kind.nbytes
                located[tensor] = Located(
                    name, about.type, about.shape, about.start, about.stop, unit
                )
        for tensor, one in located.items():
            found[f"{name}: {tensor}" if tensor in found else tensor] = one
    return found


def compare_tensors(
    a: Contents,
    b: Contents,
    of_a: Mapping[str, Located],
    of_b: Mapping[str, Located],
    report: Report,
) -> TensorDifferences:
    """Compare the bytes of tensors that both have, in ranges of 16 MiB.

    Files that a store vouches for with equal digests are not read. Raises `BadInput` for a file
    that ends before its header says, `TryAgain` where the device fails.
    """
    common = sorted(of_a.keys() & of_b.keys(), key=lambda name: (of_a[name].file, of_a[name].start))
    total = sum(of_a[name].stop - of_a[name].start for name in common)
    changed: list[TensorChange] = []
    done = 0
    with _Reader(a) as read_a, _Reader(b) as read_b:
        for name in common:
            one, other = of_a[name], of_b[name]
            if (one.type, one.shape) != (other.type, other.shape):
                changed.append(TensorChange(name, one.title, other.title))
            elif not _known_equal(a, b, one, other):
                differing = _differing(read_a, read_b, one, other)
                if differing:
                    pieces = -(-(one.stop - one.start) // one.unit)
                    changed.append(TensorChange(name, one.title, other.title, differing, pieces))
            done += one.stop - one.start
            report(done, total, name)
    return TensorDifferences(
        compared=len(common),
        same=len(common) - len(changed),
        changed=tuple(changed),
        added=tuple(sorted(of_b.keys() - of_a.keys())),
        removed=tuple(sorted(of_a.keys() - of_b.keys())),
    )


def metadata_differences(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """Keys of two GGUF files' metadata that differ, with both values."""
    one, other = read_gguf_header(a), read_gguf_header(b)
    keys = sorted(one.metadata.keys() | other.metadata.keys())
    pairs = {key: (_plain(one, key), _plain(other, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _plain(header: GgufHeader, key: str) -> Any:
    """A value as JSON has it; what is long by its digest."""
    value = header.metadata.get(key)
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, tuple):
        return list(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return f"{value.items} items, sha256 {value.sha256[:16]}"


def _known_equal(a: Contents, b: Contents, one: Located, other: Located) -> bool:
    if (one.start, one.stop) != (other.start, other.stop):
        return False
    known = a.digests.get(one.file)
    if known is not None and known == b.digests.get(other.file):
        return True
    return a.files[one.file].samefile(b.files[other.file])


class _Reader:
    """Ranges of a side's files, one file open at a time."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._name = ""
        self._file: InputFile | None = None
        self._buffer = aligned_buffer(_RANGE)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, name: str, offset: int, length: int) -> Any:
        if self._file is None or name != self._name:
            if self._file is not None:
                self._file.close()
            self._name, self._file = name, InputFile(self._contents.files[name])
        if offset + length > self._file.size:
            raise BadInput(f"{self._file.path} ends before its header says.")
        self._file.read_into(self._buffer, offset, length)
        return np.frombuffer(self._buffer, np.uint8, length)


def _differing(read_a: _Reader, read_b: _Reader, one: Located, other: Located) -> int:
    """How many elements or blocks differ."""
    found, done, length = 0, 0, one.stop - one.start
    if length != other.stop - other.start:
        return max(1, abs(length - other.stop + other.start) // one.unit)
    step = _RANGE // one.unit * one.unit
    while done < length:
        count = min(step, length - done)
        left = read_a.read(one.file, one.start + done, count)
        right = read_b.read(other.file, other.start + done, count)
        unequal = left != right
        if unequal.any():
            whole = count // one.unit * one.unit
            found += int(unequal[:whole].reshape(-1, one.unit).any(axis=1).sum())
            found += bool(unequal[whole:].any())
        done += count
    return found
