"""Malformed inputs through the command line: refused by name, with nothing left behind."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from .cases import CASES
from .place import COMMAND, LAYERS, SHARDS, Case, Place, build
from .warm import Warm

CPU_SECONDS = 30
SECONDS = 150  # of the clock: a busy machine must not fail the tests, a process that hangs must
BYTES = 2 * 10**9
LONGEST = 3000  # characters of a message; some name a few long paths


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    return build(tmp_path / "place")


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str
    peak: int


def run(warm: Warm, arguments: list[str], scratch: Path) -> Run:
    """Run the command line in a process of its own, with no network and caches of its own."""
    out, err = scratch / "stdout", scratch / "stderr"
    code, peak = warm.run(
        arguments=arguments,
        environment={
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "XDG_DATA_HOME": str(scratch / "data"),
            "COLUMNS": "1000",
        },
        cwd=str(scratch),
        out=str(out),
        err=str(err),
        cpu_seconds=CPU_SECONDS,
        seconds=SECONDS,
    )
    return Run(code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace"), peak)


def fingerprint(root: Path) -> dict[str, str]:
    """Every entry below `root`: its kind, and the digest of what a regular file holds."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"link to {path.readlink()}"
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                what = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            what = oct(stat.S_IFMT(mode))
        found[str(path.relative_to(root))] = what
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(case: Case, place: Place, tmp_path: Path, warm: Warm) -> None:
    case.corrupt(place)
    before = fingerprint(place.root)
    done = run(warm, case.arguments(place), tmp_path)
    assert not place.canary.exists(), "code from an input ran"
    assert "Traceback" not in done.err, done.err
    assert done.code in case.exits, done.err
    assert done.peak < BYTES
    after = fingerprint(place.root)
    assert {name: after.get(name) for name in before} == before, "an input changed"
    if done.code == 0:
        if case.check is not None:
            case.check(place)
        return
    assert re.search(case.says, done.err, re.DOTALL), done.err
    assert len(done.err) < LONGEST, "a message that nobody can read"
    assert done.out == ""
    assert after == before, "something was left behind"
    if done.code != 2:  # click separates its usage line from the error
        assert "\n\n" not in done.err.strip(), done.err
        assert all(char.isprintable() or char == "\n" for char in done.err), repr(done.err)


def test_the_valid_pair_merges(place: Place, tmp_path: Path, warm: Warm) -> None:
    case = Case("valid", lambda place: None, "", (0,), COMMAND, None)
    done = run(warm, case.arguments(place), tmp_path)
    assert done.code == 0, done.err
    assert {SHARDS[0], SHARDS[1], "config.json"} <= {path.name for path in place.out.iterdir()}


# --- the builders themselves ---------------------------------------------------------------------


def test_the_valid_pair_is_valid(place: Place) -> None:
    names: list[str] = []
    for file in (*(place.base / shard for shard in SHARDS), place.lora):
        with safe_open(file, "np") as opened:
            names += opened.keys()
    assert len(names) == len(set(names)) == 3 + 9 * LAYERS + 4 * LAYERS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_builders_build(case: Case, place: Place) -> None:
    valid = fingerprint(place.root)
    case.corrupt(place)
    special = case.command != COMMAND
    assert special or fingerprint(place.root) != valid
    assert case.arguments(place)


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))
