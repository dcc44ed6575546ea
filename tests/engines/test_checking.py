"""Whether an engine works: in interpreters that have what it needs, and in others."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from remerge.engines.checking import check
from remerge.engines.engine import Engine

ENGINE = Engine("tried", "nothing", ("numpy==1.0", "absent==1.0"), ("json",))
PYTHON = Path(sys.executable)


def failure(engine: Engine, python: Path) -> str:
    found = check(engine, python)
    assert found.failure is not None
    return found.failure


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_it_imports_what_the_engine_needs(tmp_path: Path):
    found = check(ENGINE, PYTHON)
    assert found.failure is None
    assert found.did == "imported it"
    # Versions are those that are there, not those asked for.
    assert list(found.versions) == ["numpy"] and found.versions["numpy"] != "1.0"
    said = failure(replace(ENGINE, modules=("json", "no_such_module")), PYTHON)
    assert f"{PYTHON} has no package for 'no_such_module'" in said
    assert "ended with 7" in failure(ENGINE, program(tmp_path / "python", "exit 7"))


def test_what_remerge_needs_is_needed(tmp_path: Path):
    """remerge comes along; what it imports must be there."""
    bare = program(tmp_path / "python", f'exec {PYTHON.resolve()} -S "$@"')
    assert "has no package for" in failure(ENGINE, bare)


def test_an_interpreter_that_is_too_old(tmp_path: Path):
    said = failure(ENGINE, program(tmp_path / "python", "echo unknown option -P >&2; exit 2"))
    assert "unknown option -P" in said


def test_paths_of_the_shell_decide_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "only_here.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "only_here" in failure(replace(ENGINE, modules=("only_here",)), PYTHON)


def test_the_working_directory_decides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "only_here.py").touch()
    monkeypatch.chdir(tmp_path)
    assert "only_here" in failure(replace(ENGINE, modules=("only_here",)), PYTHON)
