"""One file with its manifest beside it: the old two or the new two, whenever it is cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from remerge.errors import UsageError
from remerge.outputs.directory import MANIFEST, PROVENANCE, Workplace, sweep
from remerge.outputs.single_file import (
    FILE,
    check_file,
    file_workplace,
    finish_file,
    manifest_beside,
    provenance_beside,
    publish_file,
)


class Killed(BaseException):
    """As SIGKILL: nothing is unwound."""


def fill(place: Workplace, content: str) -> None:
    (place.work / FILE).write_text(content)
    (place.work / PROVENANCE).write_text(f"provenance of {content}")
    (place.work / MANIFEST).write_text(f"manifest of {content}")


def made(out: Path, content: str) -> None:
    with file_workplace(out, {}) as place:
        fill(place, content)
        publish_file(place)


def state(out: Path) -> tuple[str, ...]:
    return tuple(path.read_text() for path in (out, provenance_beside(out), manifest_beside(out)))


def whole(content: str) -> tuple[str, ...]:
    return content, f"provenance of {content}", f"manifest of {content}"


def test_published(tmp_path: Path):
    out = tmp_path / "m.gguf"
    made(out, "one")
    assert state(out) == whole("one")
    made(out, "two")
    assert state(out) == whole("two")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "m.gguf",
        "m.gguf.provenance.json",
        "m.gguf.remerge.json",
    ]


def test_a_failure_leaves_the_old(tmp_path: Path):
    out = tmp_path / "m.gguf"
    made(out, "one")
    with pytest.raises(RuntimeError), file_workplace(out, {}) as place:
        fill(place, "two")
        raise RuntimeError
    assert state(out) == whole("one")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_kill_before_every_rename_is_ended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, before: bool
):
    out = tmp_path / "m.gguf"
    if before:
        made(out, "one")
    left = renames
    rename = Path.rename

    def deadly(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", deadly)
        # The work stays, as after a kill: `workplace` would clear it away.
        place = Workplace(out, tmp_path / ".m.gguf.remerge-partial", inside=False)
        place.work.mkdir()
        fill(place, "two")
        if renames < 3:
            with pytest.raises(Killed):
                publish_file(place)
        else:
            publish_file(place)
    finish_file(out)
    sweep(out)
    if renames:
        assert state(out) == whole("two")
    elif before:
        assert state(out) == whole("one")
    assert len(list(tmp_path.iterdir())) == (3 if renames or before else 0)


def test_what_older_versions_left_waiting_has_no_provenance(tmp_path: Path):
    out = tmp_path / "m.gguf"
    out.write_text("two")
    work = tmp_path / ".m.gguf.remerge-partial"
    work.mkdir()
    (work / MANIFEST).write_text("manifest of two")
    finish_file(out)
    assert manifest_beside(out).read_text() == "manifest of two"


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
    provenance_beside(tmp_path / "n.gguf").write_text("somebody's")
    with pytest.raises(UsageError, match="--overwrite"):
        check_file(tmp_path / "n.gguf", overwrite=False)
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        check_file(tmp_path / "d.gguf", overwrite=True)
