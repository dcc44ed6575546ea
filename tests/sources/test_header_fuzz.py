"""Near-valid headers: refused as bad input, or read as safetensors itself reads them.

`REMERGE_FUZZ=1000000` sets the number of examples of a long run.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from remerge.errors import BadInput
from remerge.sources.dtypes import BITS
from remerge.sources.header import Header, build_header, parse_header, read_header

EXAMPLES = int(os.environ.get("REMERGE_FUZZ", "400"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

Tensor = tuple[str, str, tuple[int, ...]]

fields = ["dtype", "shape", "data_offsets"]  # legal as names of tensors too
names = st.sampled_from(fields) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
).filter(lambda name: name not in ("__metadata__", "..") and "/" not in name)
whole_bytes = sorted(dtype for dtype, bits in BITS.items() if bits % 8 == 0)
tensors: st.SearchStrategy[list[Tensor]] = st.lists(
    st.tuples(
        names, st.sampled_from(whole_bytes), st.lists(st.integers(0, 4), max_size=3).map(tuple)
    ),
    max_size=5,
    unique_by=lambda tensor: tensor[0],
)
metadata = st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3)


def size(header: Header) -> int:
    return sum(info.nbytes for info in header.tensors.values())


def oracle(raw: bytes, data_size: int) -> dict[str, dict[str, Any]] | None:
    """What safetensors reads in the same bytes; None when it refuses them."""
    try:
        content = struct.pack("<Q", len(raw)) + raw + bytes(range(256)) * (data_size // 256 + 1)
        return dict(safetensors.deserialize(content[: 8 + len(raw) + data_size]))
    except safetensors.SafetensorError:
        return None


def check(raw: bytes, data_size: int) -> None:
    """The property: `BadInput`, or one meaning, and the same as safetensors'."""
    try:
        header = parse_header(raw, data_size)
    except BadInput:
        return
    position = 0
    for info in header.tensors.values():
        assert info.start == position <= info.stop <= data_size
        assert 8 * info.nbytes == math.prod(info.shape) * BITS[info.dtype]
        position = info.stop
    assert position == data_size
    document = json.loads(raw)
    assert set(document) - {"__metadata__"} == set(header.tensors)
    assert document.get("__metadata__", {}) == header.metadata
    theirs = oracle(raw, data_size)
    assert theirs is not None, "accepted what safetensors refuses"
    data = bytes(range(256)) * (data_size // 256 + 1)
    assert set(theirs) == set(header.tensors)
    for name, info in header.tensors.items():
        assert tuple(theirs[name]["shape"]) == info.shape
        assert bytes(theirs[name]["data"]) == data[info.start : info.stop]


@fuzz
@given(tensors, metadata)
def test_what_is_built_is_read(content: list[Tensor], words: dict[str, str]) -> None:
    header = build_header(content, words)
    assert header.data_offset % 8 == 0
    assert parse_header(header.raw, size(header)) == header
    assert [name for name, _, _ in content] == list(header.tensors)
    check(header.raw, size(header))


# --- mutations -----------------------------------------------------------------------------------

# What has split parsers before, to be put in place of any piece of a header.
TOKENS = [
    b"", b" ", b"\n", b"\0", b"\xff", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"-", b"-0",
    b"0", b"1", b"00", b"1.0", b"1e3", b"1E400", b"true", b"null", b"NaN", b"Infinity", b"{}",
    b"[]",    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"9" * 5000,
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BF16"', b'"f32"',
    b'"F4"', b"\\u0000", b"\\ud800", b"\\ud83d\\ude00", b"\\/", b'"../x"', b'"dtype":"U8",',
    b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', b'"__metadata__":{"a":"b"},',
    b'"__metadata__":{"a":"\\ud800"},', b'"__metadata__":{"a":"b","a":"c"},', b"\xef\xbb\xbf",
    b"/**/", b"'", b"\xc0\x80",
]  # fmt: skip

edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 12),
        st.sampled_from(TOKENS) | st.binary(max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def mutate(raw: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Replace pieces: each change is where (a fraction), how many bytes, and by what."""
    for where, length, token in changes:
        start = int(where * (len(raw) + 1))
        raw = raw[:start] + token + raw[start + length :]
    return raw


@fuzz
@given(tensors, metadata, edits, st.integers(-2, 2))
def test_mutated_bytes(
    content: list[Tensor], words: dict[str, str], changes: list[Any], more: int
) -> None:
    header = build_header(content, words)
    check(mutate(header.raw, changes), max(0, size(header) + more * (more in (-1, 1))))


def test_a_header_that_is_one_description() -> None:
    check(b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', 1)
    check(b'{"__metadata__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1)
    check(b'{"__metadata__":{"dtype":"a","shape":"b","data_offsets":"c"}}', 0)
    check(b'{"dtype":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1)


# Edits that keep the JSON whole reach the checks behind it.
odd = (
    st.integers(-3, 40)
    | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, True, None, 0.0, "1", [], {}])
    | st.lists(st.integers(-1, 20), max_size=3)
    | st.sampled_from(sorted(BITS))
)


@fuzz
@given(tensors.filter(bool), st.data())
def test_mutated_entries(content: list[Tensor], data: st.DataObject) -> None:
    header = build_header(content, {})
    document = json.loads(header.raw)
    for _ in range(data.draw(st.integers(1, 2))):
        entry = document[data.draw(st.sampled_from(sorted(document)))]
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        if isinstance(entry.get(key), list) and entry[key] and data.draw(st.booleans()):
            entry[key][data.draw(st.integers(0, len(entry[key]) - 1))] = data.draw(odd)
        else:
            entry[key] = data.draw(odd)
    check(json.dumps(document).encode(), size(header))


@fuzz
@given(tensors, st.permutations(range(5)), st.booleans())
def test_any_order_of_entries(content: list[Tensor], order: list[int], again: bool) -> None:
    header = build_header(content, {})
    items = list(json.loads(header.raw).items())
    items = [items[n] for n in order if n < len(items)]
    if again and items:
        items.append(items[0])
    raw = b"{" + b",".join(json.dumps({k: v}).encode()[1:-1] for k, v in items) + b"}"
    check(raw, size(header))
    if not again:
        assert parse_header(raw, size(header)).tensors == header.tensors


# --- whole files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


@fuzz
@given(content=tensors, changes=edits)
@example(content=[], changes=[(0.0, 12, b"")])
@example(content=[], changes=[(0.0, 8, b"\xff" * 8)])
def test_mutated_files(file: Path, content: list[Tensor], changes: list[Any]) -> None:
    header = build_header(content, {})
    whole = struct.pack("<Q", len(header.raw)) + header.raw + bytes(size(header))
    file.write_bytes(mutate(whole, changes))
    try:
        found = read_header(file)
    except BadInput as error:
        assert str(file) in str(error)
        return
    assert found.data_offset + size(found) == file.stat().st_size
    with safetensors.safe_open(file, "np") as theirs:
        assert set(theirs.keys()) == set(found.tensors)
        for name, info in found.tensors.items():
            assert tuple(theirs.get_slice(name).get_shape()) == info.shape
            assert theirs.get_slice(name).get_dtype() == info.dtype
