"""Work in another interpreter: progress, results, errors carried over, crashes told."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge import errors
from remerge.engines.calling import call
from remerge.errors import BadInput, RemergeError, TryAgain

MODULE = "engine_of_the_test"
_KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RemergeError)
]
_FRAME = """
import os, sys, time
import remerge
from remerge import errors
from remerge.engines.calling import answer

def work(request, report):
{body}

if __name__ == "__main__":
    answer(work)
"""


def python_with(place: Path, body: str, *, frame: str = _FRAME) -> Path:
    """An interpreter whose module ``MODULE`` does ``body``."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (place / f"{MODULE}.py").write_text(frame.format(body=lines))
    python = place / "python"
    # After what the caller's shell says, which must not come this far.
    path = f'PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{place}"'
    python.write_text(f'#!/bin/sh\n{path} exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def unheard(done: int, total: int, tensor: str) -> None:
    raise AssertionError((done, total, tensor))


def ask(python: Path, **request: Any) -> Mapping[str, Any]:
    return call(python, MODULE, request, unheard)


def test_request_progress_result(tmp_path: Path):
    python = python_with(
        tmp_path,
        """
for step in range(request["steps"]):
    report(step + 1, request["steps"], request["name"])
return {"asked": request, "process": os.getpid()}
""",
    )
    heard: list[tuple[int, int, str]] = []
    request = {"steps": 3, "name": "blk.0.é\n\udcff", "nested": {"a": [1, None, 0.1]}}
    result = call(python, MODULE, request, lambda *told: heard.append(told))
    assert heard == [(1, 3, request["name"]), (2, 3, request["name"]), (3, 3, request["name"])]
    assert result["asked"] == request
    assert result["process"] != os.getpid()


def test_requests_and_results_larger_than_a_pipe(tmp_path: Path):
    python = python_with(tmp_path, "return {'back': request['text'][::-1]}")
    text = "ab" * 500_000
    assert ask(python, text=text)["back"] == text[::-1]


def test_paths_of_the_shell_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("REMERGE_TRIED", "kept")
    body = "return {k: os.environ.get(k) for k in ('PYTHONHOME', 'PYTHONPATH', 'REMERGE_TRIED')}"
    found = dict(ask(python_with(tmp_path, body)))
    ours, last = found.pop("PYTHONPATH").split(":")
    assert last == str(tmp_path)
    assert ours != "/nowhere"
    assert found == {"PYTHONHOME": None, "REMERGE_TRIED": "kept"}


def test_remerge_comes_along_and_nothing_beside_it(tmp_path: Path):
    """An interpreter need not have it; one that has another version runs this one."""
    (tmp_path / "remerge").mkdir()
    (tmp_path / "remerge" / "__init__.py").write_text("raise RuntimeError('another remerge')")
    body = """
import remerge
ours = os.environ["PYTHONPATH"].split(":")[0]
return {"file": os.path.realpath(remerge.__file__), "path": ours, "holds": os.listdir(ours)}
"""
    found = ask(python_with(tmp_path, body))
    assert Path(found["file"]) == Path(remerge.__file__).resolve()
    assert found["holds"] == ["remerge"]
    # Nothing of it stays.
    assert not Path(found["path"]).exists()


def test_a_package_that_lacks_is_named(tmp_path: Path):
    python = python_with(tmp_path, "import no_such_package")
    with pytest.raises(BadInput, match=f"{python} has no package for 'no_such_package'"):
        ask(python)


def test_the_working_directory_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody's gguf.py in the folder where the command runs is not the engine's."""
    python = python_with(tmp_path, "import helper_of_the_test as h\nreturn {'file': h.__file__}")
    (tmp_path / "helper_of_the_test.py").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "helper_of_the_test.py").touch()
    monkeypatch.chdir(elsewhere)
    assert ask(python)["file"] == str(tmp_path / "helper_of_the_test.py")


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__)
def test_errors_are_carried_over(tmp_path: Path, kind: type[RemergeError]):
    body = f"raise errors.{kind.__name__}('what é', why='why', hint='hint')"
    with pytest.raises(RemergeError) as raised:
        ask(python_with(tmp_path, body))
    found = raised.value
    assert type(found) is kind
    assert (found.what, found.why, found.hint) == ("what é", "why", "hint")
    assert found.exit_code == kind.exit_code


def test_an_error_of_bare_facts(tmp_path: Path):
    with pytest.raises(BadInput) as raised:
        ask(python_with(tmp_path, "raise errors.BadInput('what')"))
    assert (raised.value.what, raised.value.why, raised.value.hint) == ("what", None, None)


def test_an_error_of_a_kind_not_known_here(tmp_path: Path):
    body = "class Newer(errors.BadInput): pass\nraise Newer('what')"
    with pytest.raises(RemergeError) as raised:
        ask(python_with(tmp_path, body))
    assert (type(raised.value), raised.value.what) == (RemergeError, "what")


def test_an_error_after_progress(tmp_path: Path):
    heard: list[int] = []
    python = python_with(tmp_path, "report(1, 2, 'a')\nraise errors.BadInput('late')")
    with pytest.raises(BadInput, match="late"):
        call(python, MODULE, {}, lambda done, total, tensor: heard.append(done))
    assert heard == [1]


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("print('first', file=sys.stderr)\nprint('last words', file=sys.stderr)\nsys.exit(3)",
         "3", "last words"),
        ("sys.exit(3)", "3", "nothing"),
        ("{}['absent']", "1", "KeyError: 'absent'"),
        pytest.param(
            "os.write(2, bytes([255, 10]))\nos._exit(5)", "5", "",
        ),
    ],
    ids=["exit", "silent", "traceback", "not text"],
)  # fmt: skip
def test_a_crash_is_told_with_its_last_line(tmp_path: Path, body: str, code: str, last: str):
    with pytest.raises(RemergeError) as raised:
        ask(python_with(tmp_path, body))
    assert type(raised.value) is RemergeError
    assert f"{MODULE} ended with {code}; it said last: {last}" in raised.value.what


def test_a_killed_engine_may_be_tried_again(tmp_path: Path):
    with pytest.raises(TryAgain, match="killed by signal 9"):
        ask(python_with(tmp_path, "os.kill(os.getpid(), 9)"))


def test_an_engine_that_never_reads_its_request(tmp_path: Path):
    """Its module does not import, say, and the request is longer than the pipe holds."""
    frame = "raise ImportError('no such symbol')\n"
    python = python_with(tmp_path, "pass", frame=frame)
    with pytest.raises(RemergeError, match="ImportError: no such symbol"):
        ask(python, text="x" * 1_000_000)


@pytest.mark.parametrize(
    "said",
    [
        "print('by Python')",
        "print('{\"result\": {}}', flush=True)",
        "os.write(1, b'by a library in C\\n')",
        "os.system('echo by a child')",
        "sys.stdout.write('without an end')",
    ],
)
def test_what_the_work_prints_is_no_message(tmp_path: Path, said: str):
    heard: list[int] = []
    python = python_with(tmp_path, f"{said}\nreport(1, 1, 'a')\n{said}\nreturn {{'right': True}}")
    result = call(python, MODULE, {}, lambda done, total, tensor: heard.append(done))
    assert result == {"right": True}
    assert heard == [1]


def test_what_imports_print_is_no_message(tmp_path: Path):
    """Before `answer` is reached: conversion and gguf are imported then."""
    python = python_with(tmp_path, "return {'right': True}", frame="print('hello')\n" + _FRAME)
    assert ask(python) == {"right": True}


def test_a_passing_condition_is_one(tmp_path: Path):
    """A full disk is exit code 75 in every other command."""
    body = "import errno\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"
    with pytest.raises((errors.TryAgain, OSError)):
        ask(python_with(tmp_path, body))


def test_a_caller_that_gives_up_ends_the_work(tmp_path: Path):
    mark = tmp_path / "mark"
    body = """
report(os.getpid(), 1, "a")
time.sleep(60)
open(request["mark"], "w")
return {}
"""
    heard: list[int] = []

    def give_up(done: int, total: int, tensor: str) -> None:
        heard.append(done)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call(python_with(tmp_path, body), MODULE, {"mark": str(mark)}, give_up)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(heard[0], 0)
    assert not mark.exists()
