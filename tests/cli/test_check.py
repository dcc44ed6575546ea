"""``remerge check``: its documents and exit codes, without an engine."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

import remerge
from remerge.cli import group
from remerge.errors import UsageError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def test_the_verdict_is_the_exit_code(tmp_path: Path):
    out = tmp_path / "out"
    remerge.merge(EXAMPLES / "base", EXAMPLES / "adapters" / "sort", out)
    done = command("check", out, "--engine", "tgi")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"passed, statically checked: {out} in tgi\n")
    (out / "tokenizer.json").unlink()
    done = command("check", out, "--engine", "tgi", "--json")
    assert done.exit_code == 5
    found = json.loads(done.stdout)
    assert (found["passed"], found["word"]) == (False, "statically checked")
    (gate,) = [gate for gate in found["gates"] if not gate["passed"]]
    assert gate["name"] == "tokenizer"
    done = command("check", out, "--engine", "tgi", "-q")
    assert (done.exit_code, done.stdout) == (5, "")


def test_an_engine_that_is_missing(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done = command("check", tmp_path / "a.gguf", "--engine", "llama.cpp")
    assert isinstance(done.exception, UsageError)
    assert "remerge engines install llama.cpp" in str(done.exception)
    assert command("check", tmp_path).exit_code == 2
