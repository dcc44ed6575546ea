"""The safetensors header, parsed strictly and written deterministically.

The format's own library accepts duplicate keys, unknown fields and odd names, and two parsers
that read one file differently are how a poisoned checkpoint passes a check. What this parser
accepts has one meaning: unique names, known dtypes, tensors that tile the data without holes.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from remerge.errors import BadInput
from remerge.sources.documents import as_list, as_object
from remerge.sources.dtypes import BITS

MAX_HEADER = 100_000_000
_MAX_ELEMENTS = 2**63 - 1
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: safetensors dtype name, shape, bytes ``[start, stop)`` of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """A parsed header: ``raw`` is the JSON as stored (padding included), tensors in data order."""

    raw: bytes
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @property
    def data_offset(self) -> int:
        """Where the data begins in the file."""
        return 8 + len(self.raw)


class _Malformed(Exception):
    pass


def read_header(path: Path) -> Header:
    """Parse the header of a safetensors file.

    Raises `BadInput` for anything but a regular file with exactly one meaning.
    """
    try:
        # A FIFO would block an ordinary open for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"Cannot open {path}: {error.strerror}.") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is not a regular file.", why="Weights come from files only.")
        prefix = os.pread(fd, 32, 0)
        if prefix.startswith(_LFS_POINTER):
            raise BadInput(
                f"{path} is a git-lfs pointer, not the weights.",
                hint="Run `git lfs pull` in that repository, or download it with `hf download`.",
            )
        if prefix.startswith(b"GGUF"):
            raise BadInput(
                f"{path} is a GGUF file, not safetensors.",
                hint="Merge into the Hugging Face checkpoint that it was converted from.",
            )
        if len(prefix) < 8:
            raise _broken(path, f"it has {status.st_size} bytes, fewer than a header needs")
        (length,) = struct.unpack("<Q", prefix[:8])
        if length > MAX_HEADER or length + 8 > status.st_size:
            raise _broken(
                path, f"its header claims {length:,} bytes in a file of {status.st_size:,} bytes"
            )
        raw = os.pread(fd, length, 8)
        if len(raw) != length:
            raise _broken(path, "its header ends before its stated length")
    except OSError as error:
        raise BadInput(f"Cannot read {path}: {error.strerror}.") from error
    finally:
        os.close(fd)
    return parse_header(raw, status.st_size - 8 - length, path)


def parse_header(raw: bytes, data_size: int, path: Path | str = "header") -> Header:
    """Parse header JSON for ``data_size`` bytes of tensor data; raises `BadInput`."""
    if not raw.startswith(b"{"):
        raise _broken(path, "its header is not a JSON object")
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant
        )
    except _Malformed as error:
        raise _broken(path, str(error)) from error
    except RecursionError as error:
        raise _broken(path, "its header is nested too deeply") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise _broken(path, f"its header is not valid JSON ({error})") from error
    entries = as_object(document)
    if entries is None:
        raise _broken(path, "its header describes one tensor, without a name")
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            metadata = _metadata(entry, path)
        elif isinstance(entry, TensorInfo):
            tensors[_checked_name(name, path)] = entry
        else:
            raise _broken(path, f"the entry of tensor {name!r} is not a tensor description")
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_tiling(ordered, data_size, path)
    return Header(raw, ordered, metadata)


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Header:
    """Lay tensors out one after another, in the given order: ``(name, dtype, shape)``.

    The JSON is padded so that the data begin at a multiple of 8.
    """
    infos: dict[str, TensorInfo] = {}
    position = 0
    for name, dtype, shape in tensors:
        stop = position + math.prod(shape) * BITS[dtype] // 8
        infos[name] = TensorInfo(dtype, shape, position, stop)
        position = stop
    document: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, info in infos.items():
        document[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.stop],
        }
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return Header(raw + b" " * (-len(raw) % 8), infos, dict(metadata))


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    """Turn each JSON object into its final form at once: a million dicts would not fit."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Malformed(f"its header states {double!r} twice")
    if found.keys() == {"dtype", "shape", "data_offsets"} and not all(
        isinstance(value, (TensorInfo, str)) for value in found.values()
    ):
        return _tensor(found["dtype"], found["shape"], found["data_offsets"])
    return found


def _tensor(dtype: Any, shape: Any, offsets: Any) -> TensorInfo:
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Malformed(f"its header names an unknown dtype {dtype!r}")
    sizes, ends = _sizes(shape), _sizes(offsets)
    if sizes is None:
        raise _Malformed(f"its header states a shape that is no list of sizes: {_short(shape)}")
    if ends is None or len(ends) != 2 or max(ends) > _MAX_ELEMENTS:
        raise _Malformed(f"its header states data_offsets {_short(offsets)}")
    elements = 1
    for size in sizes:
        elements *= size
        if elements > _MAX_ELEMENTS:
            raise _Malformed(f"its header states a shape too large to exist: {_short(shape)}")
    bits = elements * BITS[dtype]
    start, stop = ends
    if bits % 8 or stop - start != bits // 8:
        raise _Malformed(
            f"its header gives a {dtype} tensor of shape {_short(shape)} {stop - start} bytes, "
            f"where {bits / 8:g} are needed"
        )
    return TensorInfo(dtype, sizes, start, stop)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A JSON array of non-negative integers (true and 1.0 are none), else None."""
    sizes = as_list(value)
    if sizes is None or not all(type(n) is int and n >= 0 for n in sizes):
        return None
    return tuple(sizes)


def _metadata(entry: Any, path: Path | str) -> dict[str, str]:
    found = as_object(entry)
    if found is None or not all(isinstance(value, str) for value in found.values()):
        raise _broken(path, "its __metadata__ is not a mapping of strings")
    return found


def _checked_name(name: str, path: Path | str) -> str:
    if not name or any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise _broken(path, f"a tensor is named {name!r}")
    if ".." in name.split("/") or name.startswith("/"):
        raise _broken(path, f"a tensor is named like a path, {name!r}")
    return name


def _check_tiling(tensors: Mapping[str, TensorInfo], data_size: int, path: Path | str) -> None:
    position = 0
    for name, info in tensors.items():
        if info.start != position:
            kind = "overlaps another tensor" if info.start < position else "leaves a hole before it"
            raise _broken(path, f"tensor {name!r} {kind} (offset {info.start}, not {position})")
        position = info.stop
    if position != data_size:
        kind = "is cut short" if position > data_size else "has bytes after its last tensor"
        raise _broken(path, f"it {kind}: tensors take {position:,} bytes, there are {data_size:,}")


def _no_constant(text: str) -> NoReturn:
    raise _Malformed(f"its header holds {text}, which is not JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _broken(path: Path | str, reason: str) -> BadInput:
    return BadInput(
        f"{path} is not a valid safetensors file: {reason}.",
        why="The file is damaged, incomplete or made to mislead.",
        hint="Download or save it again.",
    )
