"""What a machine remembers of inputs, while several commands end at the same time."""

from __future__ import annotations

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
