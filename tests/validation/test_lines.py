"""Files of one thing a line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.errors import BadInput, UsageError
from remerge.validation.lines import object_of, read_lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends(tmp_path: Path, end: str, last: bool, mark: str):
    text = mark + end.join(["one", "", "  ", " two "]) + (end if last else "")
    (tmp_path / "a").write_bytes(text.encode())
    found = read_lines(tmp_path / "a", "--eval")
    assert found.lines == ((1, "one"), (4, " two "))
    assert found.size == len(text.encode())
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_only_a_newline_ends_a_line(tmp_path: Path):
    """JSON may hold Unicode's other ends of lines as they are."""
    value = {"prompt": "a\u2028b\u2029c\x85d\x7f\u3000e"}
    (tmp_path / "a").write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    ((number, line),) = read_lines(tmp_path / "a", "--eval").lines
    assert (number, object_of("x", line)) == (1, value)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_what_json_writes_is_read(value: dict[str, object]):
    assert object_of("x", json.dumps(value)) == value
    assert object_of("x", json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("nothing", "no JSON"),
        ('{"a": 1, "a": 2}', "states 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "states 'b' twice"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"a": ["\\udc00"]}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "no JSON"),
    ],
)
def test_lines_that_are_none(line: str, said: str):
    with pytest.raises(BadInput, match=said) as caught:
        object_of("q.jsonl, line 3", line)
    assert str(caught.value).startswith("q.jsonl, line 3")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"--eval .* cannot be read"):
            read_lines(place, "--eval")
    (tmp_path / "a").write_bytes("gut\nschön".encode("latin-1"))
    with pytest.raises(BadInput, match=r"no UTF-8 text \(byte 7\)"):
        read_lines(tmp_path / "a", "--eval")
    monkeypatch.setattr("remerge.validation.lines._MAX_FILE", 8)
    with pytest.raises(UsageError, match="more than 8 bytes"):
        read_lines(tmp_path / "a", "--eval")


def test_a_pipe_is_read(tmp_path: Path):
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo")
    os.close(writing)
    assert len(read_lines(Path(f"/dev/fd/{reading}"), "--eval").lines) == 2
    os.close(reading)
