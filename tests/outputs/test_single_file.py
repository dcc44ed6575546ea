"""One file with its manifest beside it: the old two or the new two, whenever it is cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from remerge.errors import UsageError
from remerge.outputs import single_file
from remerge.outputs.directory import MANIFEST, Workplace, sweep
from remerge.outputs.single_file import (
    FILE,
    check_file,
    file_workplace,
    finish_file,
    manifest_beside,
    publish_file,
)


class Killed(BaseException):
    """As SIGKILL: nothing is unwound."""


def fill(place: Workplace, content: str) -> None:
    (place.work / FILE).write_text(content)
    (place.work / MANIFEST).write_text(f"manifest of {content}")


def made(out: Path, content: str) -> None:
    with file_workplace(out, {}) as place:
        fill(place, content)
        publish_file(place)


def state(out: Path) -> tuple[str, str]:
    return out.read_text(), manifest_beside(out).read_text()


def test_published(tmp_path: Path):
    out = tmp_path / "m.gguf"
    made(out, "one")
    assert state(out) == ("one", "manifest of one")
    made(out, "two")
    assert state(out) == ("two", "manifest of two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "m.gguf.remerge.json"]


def test_a_failure_leaves_the_old(tmp_path: Path):
    out = tmp_path / "m.gguf"
    made(out, "one")
    with pytest.raises(RuntimeError), file_workplace(out, {}) as place:
        fill(place, "two")
        raise RuntimeError
    assert state(out) == ("one", "manifest of one")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kill_between_the_two_is_ended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "m.gguf"
    made(out, "one")

    def killed(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(single_file, "finish_file", killed)
        # The work stays, as after a kill: `workplace` would clear it away.
        place = Workplace(out, tmp_path / ".m.gguf.remerge-partial", inside=False)
        place.work.mkdir()
        fill(place, "two")
        with pytest.raises(Killed):
            publish_file(place)
    assert state(out) == ("two", "manifest of one")
    finish_file(out)
    assert state(out) == ("two", "manifest of two")
    sweep(out)
    assert len(list(tmp_path.iterdir())) == 2


def test_work_that_was_not_published_is_not_taken_for_it(tmp_path: Path):
    out = tmp_path / "m.gguf"
    place = Workplace(out, tmp_path / ".m.gguf.remerge-partial", inside=False)
    place.work.mkdir()
    fill(place, "half")
    finish_file(out)
    assert not out.exists() and not manifest_beside(out).exists()


def test_what_is_in_the_way(tmp_path: Path):
    out = tmp_path / "m.gguf"
    check_file(out, overwrite=False)
    out.write_text("somebody's")
    with pytest.raises(UsageError, match="--overwrite"):
        check_file(out, overwrite=False)
    check_file(out, overwrite=True)
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        check_file(tmp_path / "d.gguf", overwrite=True)
