"""``remerge promote`` and ``remerge rollback`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import remerge
from remerge.cli import group

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ("--skip", "compare", "--skip", "check", "--reason", "tried by hand")


@pytest.fixture(autouse=True)
def _two_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))
    for name, adapter in (("v1", "sort"), ("v2", "dates")):
        out = tmp_path / name
        remerge.merge(EXAMPLES / "base", EXAMPLES / "adapters" / adapter, out)
        remerge.Store().add(out, name=name)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words])


def document(*words: str | Path, code: int = 0) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_from_the_first_promotion_to_the_rollback() -> None:
    done = run("promote", "v1", "--eval", EXAMPLES / "eval/sort.jsonl", "--limit", 12)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    assert all(" passed: " in line for line in lines[:4])
    assert lines[4].startswith("promoted: production is v1")
    found = document("promote", "v1", "--to", "staging", "--limit", "10", "--again")
    assert [step["state"] for step in found["steps"]] == ["passed", "passed", "passed", "passed"]
    assert found["promoted"] and found["error"] is None and found["was"] is None
    # The findings are those of the commands.
    assert found["steps"][1]["findings"]["verdict"] == "passed"
    assert found["steps"][2]["findings"]["engine"] == "transformers"
    assert run("promote", "v1").stdout.endswith("already: nothing was changed\n")
    short = run("promote", "v2", *SHORT)
    assert "NOT DONE, as asked: tried by hand" in short.stdout and "note: not done" in short.stderr
    past = document("rollback", "--list")["history"]
    assert [(one["back"], one["names"][-1]) for one in past] == [(0, "v2"), (1, "v1")]
    back = run("rollback")
    assert back.stdout.startswith("rolled back: production is ")
    assert remerge.Store().show("production").names == ("production", "staging", "v1")
    assert "WITHOUT compare: tried by hand" in run("store", "log", "production").stdout
    actions = [line.split()[1] for line in run("store", "log", "production").stdout.splitlines()]
    assert actions == ["rollback", "promote", "promote"]
    assert "--to" not in run("rollback", "--list").stdout


def test_a_refusal_has_its_exit_code_and_every_step() -> None:
    found = document("promote", "v1", "--max-kl", "1e-12", code=5)
    states = [step["state"] for step in found["steps"]]
    assert states == ["passed", "failed", "not run", "not run"]
    assert found["error"]["exit_code"] == 5 and not found["promoted"]
    assert found["error"]["what"].startswith("Refused at step 2 of 4, compare gate: ")
    failing = [gate for gate in found["steps"][1]["findings"]["gates"] if not gate["passed"]]
    assert [gate["name"] for gate in failing] == ["KL divergence, built-in"]
    shown = run("promote", "v1", "--max-kl", "1e-12")
    assert isinstance(shown.exception, remerge.NotReproduced)
    # The table of compare, with the line that fails.
    assert "KL divergence, built-in" in shown.stdout and "FAILS" in shown.stdout
    assert "production" not in [name for row in remerge.Store().ls() for name in row.names]


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "v1", "--reason", "none"),
        ("promote", "v1", "--skip", "compare"),
        ("promote", "v1", "--skip", "verify", "--reason", "none"),
        ("promote", "v1", "--to", "a/b"),
        ("promote", "v1", "--engine", "nothing", *SHORT[:2], "--reason", "none"),
        ("rollback", "--to", "0"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...]) -> None:
    remerge.promote("v2", skip=["compare", "check"], reason="none")
    before = remerge.Store().log()
    done = run(*words)
    wrong = done.exit_code == 2 or isinstance(done.exception, remerge.UsageError)
    assert wrong, done.output
    assert remerge.Store().log() == before


def test_a_dry_run_says_what_would_be_done() -> None:
    done = run("promote", "v1", "--dry-run", *SHORT)
    assert done.exit_code == 0 and "derive it again" in done.stdout
    assert "would NOT be done: tried by hand" in done.stdout
    assert done.stdout.endswith("dry run: nothing was done\n")
    assert "promote" not in {entry["action"] for entry in remerge.Store().log()}
