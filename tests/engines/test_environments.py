"""Engines' environments: when one counts, which interpreter runs an engine, what is removed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from remerge.engines import environments
from remerge.engines.engine import Engine, FromSource
from remerge.engines.environments import is_installed, place_of, python_of, remove
from remerge.engines.registry import ENGINES, engine_of
from remerge.errors import UsageError

SOURCE = FromSource("sources==1.0", ("part",), "0" * 64)
ENGINE = Engine("tried", "nothing", ("package==1.0",), ("json",), (SOURCE,))


def pretend(engine: Engine) -> Path:
    """The environment as `install` leaves it, of one file and the receipt."""
    place = place_of(engine)
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    receipt = environments.receipt(engine)
    (place / "remerge-engine.json").write_text(json.dumps(receipt))
    return place


def test_it_counts_with_the_right_receipt_alone():
    assert not is_installed(ENGINE)
    place = pretend(ENGINE)
    assert is_installed(ENGINE)
    assert place.is_relative_to(os.environ["XDG_CACHE_HOME"])
    # A killed installation: everything but the receipt.
    (place / "remerge-engine.json").unlink()
    assert not is_installed(ENGINE)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", "\xff"])
def test_a_receipt_that_says_nothing(text: str):
    (pretend(ENGINE) / "remerge-engine.json").write_bytes(text.encode("latin-1"))
    assert not is_installed(ENGINE)


def test_another_definition_makes_it_stale():
    pretend(ENGINE)
    newer = replace(ENGINE, requirements=("package==1.1",))
    assert not is_installed(newer)
    assert is_installed(ENGINE)


def test_another_environment_below_makes_it_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pretend(ENGINE)
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    assert not is_installed(ENGINE)


def test_a_removal_that_is_killed_leaves_none(monkeypatch: pytest.MonkeyPatch):
    def killed(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    place = pretend(ENGINE)
    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(ENGINE)
    assert place.is_dir()
    assert not is_installed(ENGINE)


@pytest.mark.parametrize(
    "other",
    [
        replace(ENGINE, requirements=("package==1.1",)),
        replace(ENGINE, requirements=("package==1.0", "another")),
        replace(ENGINE, modules=("gguf",)),
        replace(ENGINE, sources=(replace(SOURCE, requirement="sources==1.1"),)),
        replace(ENGINE, sources=(replace(SOURCE, sha256="1" * 64),)),
        replace(ENGINE, sources=()),
    ],
)
def test_the_identity_is_that_of_the_versions(other: Engine):
    assert other.identity != ENGINE.identity
    assert replace(other).identity == other.identity
    assert len(other.identity) == 64


def test_the_interpreter_is_its_own_or_the_one_given():
    with pytest.raises(UsageError) as refused:
        python_of(ENGINE, {})
    assert "tried is not installed" in refused.value.what
    assert refused.value.hint == "Run: remerge engines install tried"
    place = pretend(ENGINE)
    assert python_of(ENGINE, {}) == place / "bin" / "python"
    assert python_of(ENGINE, {"tried": sys.executable}) == Path(sys.executable)
    # Another engine's interpreter is none of this one.
    assert python_of(ENGINE, {"other": sys.executable}) == place / "bin" / "python"


def test_a_given_interpreter_needs_no_environment():
    assert python_of(ENGINE, {"tried": sys.executable}) == Path(sys.executable)


@pytest.mark.parametrize("kind", ["missing", "plain file"])
def test_a_given_interpreter_that_is_none(tmp_path: Path, kind: str):
    path = tmp_path / "python"
    if kind == "plain file":
        path.write_text("#!/bin/sh\n")
    # Not the installed one either: what was asked for is not what would run.
    pretend(ENGINE)
    with pytest.raises(UsageError, match="no program") as refused:
        python_of(ENGINE, {"tried": str(path)})
    assert f"--engine-python tried={path}" in refused.value.what


def test_a_directory_is_no_interpreter(tmp_path: Path):
    with pytest.raises(UsageError, match="no program"):
        python_of(ENGINE, {"tried": str(tmp_path)})


def test_a_given_interpreter_may_lie_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "own-python").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "own-python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert python_of(ENGINE, {"tried": "./own-python"}) == tmp_path / "own-python"


def test_an_environment_whose_interpreter_has_gone():
    """The Python that it was made by was removed, or another minor version took its place."""
    (pretend(ENGINE) / "bin" / "python").unlink()
    assert not is_installed(ENGINE)


def test_remove():
    assert not remove(ENGINE)
    place, other = pretend(ENGINE), pretend(replace(ENGINE, name="other"))
    assert remove(ENGINE)
    assert not place.exists()
    assert other.is_dir()
    assert not is_installed(ENGINE)
    assert not remove(ENGINE)


def test_no_home_no_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("remerge.engines.environments.cache_directory", lambda: None)
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        place_of(ENGINE)


def test_engines_by_name():
    for name, engine in ENGINES.items():
        assert engine_of(name) is engine
        assert engine.name == name
        # Pinned, or a rebuilt environment would be another one.
        assert all(len(source.sha256) == 64 for source in engine.sources)
    with pytest.raises(UsageError, match=r"no engine 'llama'.*Choose llama\.cpp, vllm"):
        engine_of("llama")
