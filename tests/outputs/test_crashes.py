"""Old state or complete state, never between: a merge killed before every step on the disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import remerge
from tests import tiny
from tests.outputs.killing import run


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed merge."""
    out = tmp_path_factory.mktemp("whole") / "out"
    remerge.merge(inputs / "base", inputs / "adapter", out)
    return tiny.files_of(out)


def prepare(out: Path, before: str) -> dict[str, bytes] | None:
    """The state before the merge; its files, None where there is no directory."""
    shutil.rmtree(out, ignore_errors=True)
    if before == "absent":
        return None
    out.mkdir()
    if before == "full":
        (out / "model.safetensors").write_bytes(b"somebody's work")
        (out / "notes").mkdir()
        (out / "notes" / "today.txt").write_text("x")
    return tiny.files_of(out)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("before", ["absent", "empty", "full"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=SLOW)])
def test_killed_anywhere_then_resumed(
    inputs: Path, tmp_path: Path, whole: dict[str, bytes], before: str, every: int
):
    out = tmp_path / "out"
    options = {"overwrite": True} if before == "full" else {}
    point = 1 - every
    while True:
        point += every
        old = prepare(out, before)
        code = run(inputs, out, point, **options)
        assert code in (0, -9), code
        if code == 0:
            break
        if out.is_dir() and (out / "remerge.json").exists():
            assert {n: b for n, b in tiny.files_of(out).items() if not n.startswith(".")} == whole
        elif before == "full":
            # The two renames of a system without an exchange may be cut in two; ours has one.
            assert tiny.files_of(out) == old
        assert run(inputs, out, None, **options) == 0, f"not resumed after step {point}"
        assert tiny.files_of(out) == whole, f"other bytes after step {point}"
        assert [p.name for p in tmp_path.iterdir()] == ["out"], f"siblings after step {point}"
    assert point > 20


def test_a_finished_shard_is_not_derived_again(inputs: Path, tmp_path: Path, whole):
    out = tmp_path / "out"
    work = tmp_path / ".out.remerge-partial"
    for point in range(1, 200):
        prepare(out, "absent")
        shutil.rmtree(work, ignore_errors=True)
        assert run(inputs, out, point) == -9
        if list(work.glob(".*.receipt")):
            break
    result = remerge.merge(inputs / "base", inputs / "adapter", out)
    assert len(result.resumed) == 1
    assert tiny.files_of(out) == whole


@pytest.mark.parametrize("what", ["flipped bit", "other adapter", "other dtype"])
def test_stale_work_is_not_reused(inputs: Path, tmp_path: Path, what: str):
    place = tmp_path / "inputs"
    shutil.copytree(inputs, place)
    out = tmp_path / "out"
    work = tmp_path / ".out.remerge-partial"
    for point in range(1, 200):
        shutil.rmtree(work, ignore_errors=True)
        assert run(place, out, point) == -9
        if list(work.glob(".*.receipt")):
            break
    options = {}
    if what == "flipped bit":
        receipt = next(work.glob(".*.receipt"))
        done = work / receipt.name.removeprefix(".").removesuffix(".receipt")
        data = bytearray(done.read_bytes())
        data[-100] ^= 1
        done.write_bytes(data)
    elif what == "other adapter":
        shutil.rmtree(place / "adapter")
        tiny.write_adapter(place / "adapter", seed=3)
    else:
        options = {"dtype": "float32"}
    result = remerge.merge(place / "base", place / "adapter", out, **options)
    assert result.resumed == ()
    remerge.merge(place / "base", place / "adapter", tmp_path / "fresh", **options)
    assert tiny.files_of(out) == tiny.files_of(tmp_path / "fresh")


def test_the_same_command_again_finds_it_done(inputs: Path, tmp_path: Path):
    first = remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    again = remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    assert not first.already_there
    assert again.already_there
    assert again.manifest == first.manifest


def test_a_full_directory_is_not_touched(inputs: Path, tmp_path: Path):
    old = prepare(tmp_path / "out", "full")
    with pytest.raises(remerge.UsageError, match="--overwrite"):
        remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    assert tiny.files_of(tmp_path / "out") == old


def test_a_system_without_exchange_renames_twice(
    inputs: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("remerge.outputs.directory._exchange", lambda first, second: False)
    prepare(tmp_path / "out", "full")
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out", overwrite=True)
    assert tiny.files_of(tmp_path / "out") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_writers_have_one_winner(inputs: Path, tmp_path: Path):
    from remerge.outputs.directory import workplace

    with (
        workplace(tmp_path / "out", {"who": "first"}),
        pytest.raises(remerge.Locked, match="Another remerge"),
    ):
        remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    assert list((tmp_path / ".out.remerge-partial").iterdir())


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_interrupted_politely_leaves_nothing(tmp_path: Path, number: int, code: int):
    """A terminal's Ctrl-C and a scheduler's SIGTERM unwind: exit code, no output, no sibling."""
    place = tmp_path / "place"
    place.mkdir()
    tiny.write_base(tmp_path / "base")
    tiny.write_adapter(tmp_path / "adapter")
    # A slow disk, so that the signal finds the merge at work.
    slow = (
        "import time, remerge.sources.storage as s; f = s.OutputFile.finish;"
        "s.OutputFile.finish = lambda self: (time.sleep(3), f(self));"
        "from remerge.cli import main; main()"
    )
    arguments = [
        "merge",
        str(tmp_path / "base"),
        str(tmp_path / "adapter"),
        "-o",
        str(place / "out"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    work = place / ".out.remerge-partial"
    while not list(work.glob("*.safetensors")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == code, errors
    assert b"Traceback" not in errors
    assert list(place.iterdir()) == []


def test_a_full_disk_is_said_before_the_first_write(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("remerge.merging.plan.Plan.bytes_to_write", 2**62)
    with pytest.raises(remerge.TryAgain, match="free"):
        remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(inputs: Path, tmp_path: Path):
    """RLIMIT_FSIZE makes the kernel cut a write short, then refuse (EFBIG), as a quota would."""
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000));"
        "from remerge.cli import main; main()"
    )
    arguments = ["merge", inputs / "base", inputs / "adapter", "-o", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_filling_cut_short_leaves_nothing_of_it_to_another_merge(inputs: Path, tmp_path: Path):
    """Killed among the last renames into an existing directory, then another recipe: what the
    first run moved out goes, what the user put there stays."""
    out = tmp_path / "out"
    for point in range(1, 200):
        prepare(out, "empty")
        assert run(inputs, out, point, max_shard_size="2MB") == -9
        if list(out.glob("*.safetensors")):
            break
    (out / "notes.txt").write_text("mine")
    remerge.merge(inputs / "base", inputs / "adapter", out)
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "fresh")
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert tiny.files_of(out) == tiny.files_of(tmp_path / "fresh")
