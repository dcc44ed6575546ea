"""What a machine remembers of inputs, while several commands end at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remerge.artefacts import user_index

WRITERS, ENTRIES = 2, 100
WRITE = """
import sys
from pathlib import Path
from remerge.artefacts.user_index import remember_location
for entry in range(int(sys.argv[2])):
    remember_location({"x": f"{sys.argv[1]} {entry}"}, Path(sys.argv[1]))
"""


def test_commands_that_end_together_keep_one_another_s_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / str(n)), str(ENTRIES)])
        for n in range(WRITERS)
    ]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    for number in range(WRITERS):
        place = tmp_path / str(number)
        for entry in range(ENTRIES):
            assert user_index.location({"x": f"{place} {entry}"}) == place


def test_one_of_several_copies_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    files = {"x": "digest"}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        user_index.remember_location(files, tmp_path / name)
    assert user_index.location(files) == tmp_path / "second"
    (tmp_path / "second").rmdir()
    assert user_index.location(files) == tmp_path / "first"
    user_index.remember_location(files, tmp_path / "first")
    (tmp_path / "first").rmdir()
    assert user_index.location(files) == tmp_path / "first"


def test_a_place_that_an_earlier_version_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    user_index.remember_location({"x": "digest"}, tmp_path / "new")
    kept = tmp_path / "remerge" / "locations.json"
    (key,) = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: str(tmp_path)}))
    assert user_index.location({"x": "digest"}) == tmp_path
    user_index.remember_location({"x": "digest"}, tmp_path / "new")
    assert user_index.location({"x": "digest"}) == tmp_path
