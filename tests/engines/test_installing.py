"""Making environments: from wheels made here, with an index that lacks, hangs or is not there.

pip, virtual environments and signals are the real ones; nothing is downloaded.
"""

from __future__ import annotations

import os
import signal
import site
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from remerge.engines import engine as definitions
from remerge.engines.engine import AlsoNamed, Engine
from remerge.engines.environments import (
    alone,
    interpreter,
    is_installed,
    place_of,
    remove,
    size_of,
    state_of,
    versions_in,
)
from remerge.engines.installing import _failure, install
from remerge.errors import BadInput, Locked, TryAgain

ENGINE = Engine(
    "tried",
    "nothing",
    ("main-part==1.0",),
    ("main_part",),
    lies_over=False,
    without=("harmful",),
    also_named=(AlsoNamed("main", "1.0+cpu"),),
    disk=1000,
)
# The command line, with one engine more.
_CLI = """
import sys
from remerge.engines import registry
from tests.engines.test_installing import ENGINE
registry.ENGINES["tried"] = ENGINE
from remerge.cli import main
main()
"""


def wheel(folder: Path, name: str, version: str, *requires: str, **files: str) -> None:
    """A package of one module, and what else ``files`` says lies beside it."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    content = {
        f"{module}.py": f"version = {version!r}\n",
        **{path.replace("__", "."): text for path, text in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in content) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with an old and a new main part; it needs two packages, of which one is pinned."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "main-part", "1.0", "pinned", "unpinned", "harmful")
    wheel(folder, "main-part", "2.0")
    wheel(folder, "pinned", "1.0")
    wheel(folder, "pinned", "3.0")
    wheel(folder, "unpinned", "1.0")
    wheel(folder, "harmful", "1.0")
    # What remerge itself needs there: here that of the tests' own environment.
    below = "".join(f"{path}\n" for path in site.getsitepackages())
    wheel(folder, "needs-of-remerge", "1.0", needs_of_remerge__pth=below)
    pins = tmp_path / "constraints"
    pins.mkdir()
    lines = "# Pins.\nmain-part==1.0\npinned==1.0\nneeds-of-remerge==1.0\n"
    (pins / "tried.txt").write_text(lines)
    monkeypatch.setattr(definitions, "_CONSTRAINTS", pins)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> Iterator[int]:
    """An index that takes calls and never answers; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        yield port


def nothing_there() -> bool:
    place = place_of(ENGINE)
    return not os.path.lexists(place) and state_of(ENGINE) == "not installed"


def test_an_environment_of_its_own(wheels: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    # What a killed installation left.
    (place_of(ENGINE) / "lib").mkdir(parents=True)
    (place_of(ENGINE) / "lib" / "leftover").touch()
    assert state_of(ENGINE) == "unfinished"
    # A shell's settings must not send packages elsewhere.
    monkeypatch.setenv("PIP_USER", "1")
    place = install(ENGINE, steps.append)
    assert is_installed(ENGINE) and state_of(ENGINE) == "installed"
    assert steps[1] == "main-part==1.0"
    assert not (place / "lib" / "leftover").exists()
    program = (
        "import importlib.metadata as m, main_part, pinned, remerge, unpinned\n"
        "print(main_part.version, pinned.version, m.version('main'), remerge.__file__)"
    )
    words = [str(interpreter(place)), "-I", "-c", program]
    main, pinned, named, file = subprocess.check_output(words, text=True).split()
    assert (main, pinned, named) == ("1.0", "1.0", "1.0+cpu")
    assert file.startswith(str(place))
    assert versions_in(ENGINE) == {"main-part": "1.0"}
    # Of what the pins lack the harmful stays out.
    harmful = subprocess.run(
        [str(interpreter(place)), "-I", "-c", "import harmful"], check=False, capture_output=True
    )
    assert b"No module named 'harmful'" in harmful.stderr
    # Five megabytes at least: pip itself.
    assert size_of(ENGINE) > 5_000_000
    # Again it is there at once, without an index.
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert install(ENGINE, steps.append) == place
    newer = replace(ENGINE, also_named=())
    assert state_of(newer) == "out of date"
    assert remove(ENGINE) and nothing_there()


def test_what_does_not_work_does_not_stay(wheels: Path):
    broken = replace(ENGINE, modules=("main_part", "no_such_module"))
    with pytest.raises(BadInput, match=r"installed and does not work: .*'no_such_module'"):
        install(broken, lambda step: None)
    assert nothing_there()


def test_a_version_that_the_index_lacks(wheels: Path):
    (wheels / "pinned-1.0-py3-none-any.whl").unlink()  # 3.0 is there
    with pytest.raises(BadInput, match=r"pip finds no pinned==1\.0 for Python 3") as refused:
        install(ENGINE, lambda step: None)
    assert "pip config list" in str(refused.value)
    assert nothing_there()


def test_an_index_that_is_not_there(silent: int, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(TryAgain, match="did not answer") as refused:
        install(ENGINE, lambda step: None)
    assert "secret" not in str(refused.value) and str(port) not in str(refused.value)
    assert nothing_there()


def test_a_disk_that_is_too_small():
    with pytest.raises(TryAgain, match=r"takes 1000000000\.0 GB, and .* GB free"):
        install(replace(ENGINE, disk=10**18), lambda step: None)
    assert nothing_there()


def test_a_place_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="Cannot write"):
        install(ENGINE, lambda step: None)


def test_one_at_a_time():
    (place_of(ENGINE) / "bin").mkdir(parents=True)
    with alone(ENGINE):
        for attempt in (lambda: install(ENGINE, lambda step: None), lambda: remove(ENGINE)):
            with pytest.raises(Locked, match="Another remerge is installing") as refused:
                attempt()
            assert refused.value.exit_code == 6
    # Others go on meanwhile, and this one afterwards.
    with alone(replace(ENGINE, name="other")):
        assert remove(ENGINE)


def test_of_a_link_only_the_link_goes(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    place_of(ENGINE).parent.mkdir(parents=True)
    place_of(ENGINE).symlink_to(elsewhere)
    assert remove(ENGINE)
    assert nothing_there() and (elsewhere / "kept").exists()
    # One that leads nowhere goes as well.
    place_of(ENGINE).symlink_to(tmp_path / "nowhere")
    assert remove(ENGINE) and nothing_there()


def start(*words: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _CLI, "engines", *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )


def pips() -> list[int]:
    """Processes that run in the engine's environment."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                entry.name.isdecimal()
                and os.fsencode(place_of(ENGINE))
                in (entry / "cmdline").read_bytes().split(b"\0")[0]
            ):
                found.append(int(entry.name))
    return found


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def may_write() -> bool:
    try:
        with alone(ENGINE):
            return True
    except Locked:
        return False


def asks_the_index() -> bool:
    def words(pid: int) -> bytes:
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        return b""

    return any(b"--no-deps" in words(pid) for pid in pips())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_leaves_nothing(silent: int, number: signal.Signals):
    process = start("install", "tried")
    wait_for(asks_the_index)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "nothing was left behind" in said
    assert nothing_there() and not pips()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_kill_leaves_nothing_that_counts(silent: int):
    process = start("install", "tried")
    wait_for(asks_the_index)
    process.kill()
    process.communicate(timeout=60)
    assert state_of(ENGINE) == "unfinished"
    # pip goes on without remerge; until it ends nobody else may write there.
    assert len(pips()) == 1
    second = start("install", "tried")
    assert "Another remerge is installing" in second.communicate(timeout=60)[1]
    assert second.returncode == 6
    for pid in pips():
        os.kill(pid, signal.SIGKILL)
    wait_for(may_write)
    assert remove(ENGINE) and nothing_there()


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", TryAgain, "disk is full"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken", TryAgain, "did not answer"),
        ("ERROR: No matching distribution found for torch==2.0", BadInput, "no torch==2.0"),
        ("(from versions: none)\nNo matching distribution found for a==2", TryAgain, "no a==2"),
        ("Traceback\nValueError: what", TryAgain, "ValueError: what"),
        ("", TryAgain, "nothing"),
    ],
)
def test_what_pip_says_is_told_in_words(said: str, kind: type[Exception], told: str):
    failure = _failure("pip install", said)
    assert type(failure) is kind
    assert told in str(failure)
