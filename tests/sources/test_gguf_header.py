"""GGUF headers against the gguf package of llama.cpp; damaged ones are refused.

`REMERGE_FUZZ=1000000` sets the number of examples of a long run.
"""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remerge.errors import BadInput
from remerge.sources.gguf_header import LongArray, is_gguf, read_gguf_header

EXAMPLES = int(os.environ.get("REMERGE_FUZZ", "300"))
TOKENS = [f"token {n}" for n in range(1000)]


def write(path: Path, endianess: GGUFEndian = GGUFEndian.LITTLE) -> Path:
    """A file with every kind of value and with quantised tensors."""
    writer = GGUFWriter(path, "llama", endianess=endianess)
    writer.add_string("remerge.merge_key", "ab" * 32)
    writer.add_array("remerge.adapters", ["sort", "größe"])
    writer.add_uint32("a.number", 7)
    writer.add_int64("a.negative", -(2**40))
    writer.add_float64("a.float", 0.1)
    writer.add_bool("a.truth", True)
    writer.add_array("a.tokens", TOKENS)
    writer.add_array("a.scores", [float(n) for n in range(100)])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    raw = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    writer.add_tensor("blocks", raw, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "good.gguf").read_bytes()


@pytest.mark.parametrize("endianess", list(GGUFEndian))
def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path, endianess: GGUFEndian) -> None:
    path = write(tmp_path / "model.gguf", endianess)
    header = read_gguf_header(path)
    assert header.big_endian == (endianess == GGUFEndian.BIG)
    assert header.version == 3
    if endianess == GGUFEndian.LITTLE:
        oracle = GGUFReader(path)
        assert {t.name: t.data_offset for t in oracle.tensors} == {
            name: tensor.start for name, tensor in header.tensors.items()
        }
        for tensor in oracle.tensors:
            mine = header.tensors[tensor.name]
            assert mine.shape == tuple(int(n) for n in tensor.shape)[::-1]
            assert mine.stop - mine.start == tensor.n_bytes
            assert mine.type == tensor.tensor_type.name
        fields = {name for name in oracle.fields if not name.startswith("GGUF.")}
        assert set(header.metadata) == fields
    assert header.text("remerge.merge_key") == "ab" * 32
    assert header.texts("remerge.adapters") == ("sort", "größe")
    assert header.metadata["a.number"] == 7
    assert header.metadata["a.negative"] == -(2**40)
    assert header.metadata["a.float"] == 0.1
    assert header.metadata["a.truth"] is True
    assert isinstance(header.metadata["a.tokens"], LongArray)
    assert header.metadata["a.tokens"].items == 1000
    assert header.metadata["a.scores"].items == 100
    assert {n: (t.type, t.shape) for n, t in header.tensors.items()} == {
        "matrix": ("F32", (3, 4)),
        "vector": ("F16", (5,)),
        "blocks": ("Q8_0", (2, 32)),
    }


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def array(kind: int, count: int) -> bytes:
    return string(b"k") + struct.pack("<IIQ", 9, kind, count)


def tensor(name: bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


NUMBER = string(b"k") + struct.pack("<II", 4, 1)
PAD = bytes(4096)
HOSTILE = {
    "nothing": b"",
    "magic alone": b"GGUF",
    "another file": b"PK\x03\x04" + PAD,
    "version 1": head(version=1) + PAD,
    "version 4": head(version=4) + PAD,
    "2^60 keys": head(keys=2**60) + PAD,
    "2^60 tensors": head(tensors=2**60) + PAD,
    "a key of 2^60 bytes": head(keys=1) + struct.pack("<Q", 2**60) + PAD,
    "a string of 2^60 bytes": head(keys=1) + string(b"k") + struct.pack("<IQ", 8, 2**60) + PAD,
    "an array of 2^60 strings": head(keys=1) + array(8, 2**60) + PAD,
    "an array of 2^60 numbers": head(keys=1) + array(12, 2**60) + PAD,
    "an array of arrays": head(keys=1) + array(9, 1) + struct.pack("<IQ", 9, 1) + PAD,
    "an unknown type": head(keys=1) + string(b"k") + struct.pack("<I", 99) + PAD,
    "a boolean of 2": head(keys=1) + string(b"k") + struct.pack("<IB", 7, 2) + PAD,
    "a key twice": head(keys=2) + NUMBER + NUMBER + PAD,
    "an odd alignment": head(keys=1)
    + string(b"general.alignment")
    + struct.pack("<II", 4, 33)
    + PAD,
    "no alignment": head(keys=1) + string(b"general.alignment") + struct.pack("<II", 4, 0) + PAD,
    "cut short": head(keys=1) + string(b"k") + struct.pack("<IQ", 8, 100) + b"abc",
    "five dimensions": head(tensors=1) + tensor(b"t", (1,) * 5, 0, 0) + PAD,
    "a shape too large": head(tensors=1) + tensor(b"t", (2**40, 2**40), 0, 0) + PAD,
    "a tensor past the end": head(tensors=1) + tensor(b"t", (2**20,), 0, 0) + PAD,
    "an offset past the end": head(tensors=1) + tensor(b"t", (1,), 0, 2**40) + PAD,
    "an offset out of line": head(tensors=1) + tensor(b"t", (1,), 0, 7) + PAD,
    "half a block": head(tensors=1) + tensor(b"t", (31,), 8, 0) + PAD,
    "a tensor twice": head(tensors=2) + 2 * tensor(b"t", (0,), 0, 0) + PAD,
    "overlapping": head(tensors=2) + tensor(b"t", (32,), 0, 0) + tensor(b"u", (1,), 0, 32) + PAD,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_gguf_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[case])
    tracemalloc.start()
    with pytest.raises(BadInput, match="not a valid GGUF file"):
        read_gguf_header(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "nothing"):
        with pytest.raises(BadInput):
            read_gguf_header(path)
    assert not is_gguf(tmp_path / "nothing")


def test_a_type_that_is_not_known_ends_where_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    stated = tensor(b"t", (32,), 39, 0) + tensor(b"u", (1,), 0, 32)
    path.write_bytes(head(tensors=2) + stated + PAD)
    found = read_gguf_header(path).tensors
    assert found["t"].type == "type 39"
    assert found["t"].stop == found["u"].start


changes: st.SearchStrategy[list[tuple[int, bytes]]] = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=changes, length=st.none() | st.integers(0, 2**16))
def test_a_damaged_header_is_refused_or_read(
    tmp_path: Path, good: bytes, changes: Any, length: int | None
) -> None:
    content = bytearray(good)
    for at, new in changes:
        at %= len(content) - len(new)
        content[at : at + len(new)] = new
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(content) if length is None else bytes(content[: length % len(content)]))
    try:
        header = read_gguf_header(path)
    except BadInput:
        return
    size = path.stat().st_size
    assert all(0 <= t.start <= t.stop <= size for t in header.tensors.values())
