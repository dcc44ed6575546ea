"""`remerge advise`: options, a file, questions on a terminal, and commands that can be run."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from remerge.cli import group

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
BASE, SORT = str(EXAMPLES / "base"), str(EXAMPLES / "adapters/sort")


def command(*words: str) -> Result:
    return CliRunner().invoke(group, ["advise", *words])


def document(*words: str) -> dict[str, Any]:
    done = command(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*words: str) -> str:
    """What a process of its own says, which ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "remerge", "advise", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_json_has_what_was_promised() -> None:
    told = document("--variants", "1", "--stage", "stable", "--base", BASE, "--adapter", SORT)
    assert told["decision"] == "merge"
    weights = [reason["weight"] for reason in told["reasons"]]
    assert weights == sorted(weights, reverse=True)
    assert all(reason["text"] and reason["source"] for reason in told["reasons"])
    assert told["costs"]["merge"]["disk_bytes"] == told["costs"]["merge"]["bytes_each"] > 0
    assert told["costs"]["merge"]["seconds"] > 0
    assert told["costs"]["keep"]["disk_bytes"] > told["costs"]["keep"]["base_bytes"] > 0
    assert told["next"] == f"remerge merge {BASE} {SORT} -o merged"
    assert {"fact": "stage", "to": "iterating", "value": "iterating", "decision": "keep"} in told[
        "would_change"
    ]


def test_the_same_facts_give_the_same_answer() -> None:
    words = ("--variants", "3", "--quantize", "fp8", "--base", BASE, "--adapter", SORT)
    assert document(*words) == document(*words)


def test_text_says_why_and_what_next() -> None:
    done = command("--variants", "12", "--stage", "ab-testing")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("keep: ")
    for part in ("why", "arXiv:2311.03285", "costs", "what would change the answer", "next"):
        assert part in done.stdout
    assert "remerge store add ADAPTER" in done.stdout
    assert command("--variants", "12", "-q").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("--variants", "0"),
        ("--variants", "-3"),
        ("--variants", "many"),
        ("--stage", "stabel"),
        ("--requests-per-second", "nan"),
        ("--requests-per-second", "inf"),
        ("--requests-per-second", "-1"),
        ("--latency-budget-ms", "0"),
        ("--latency-budget-ms", "nan"),
        ("--quantize", "q9_z"),
        ("--quantize", "safetensors"),
        ("--quantize", "gguf:F16"),
        ("--disk", "-5GB"),
        ("--disk", "much"),
        ("--gpu-memory", "0"),
        ("--facts", "no-such-file.yaml"),
    ],
    ids=" ".join,
)
def test_senseless_facts_are_refused(words: tuple[str, ...]) -> None:
    done = command(*words)
    assert getattr(done.exception, "exit_code", done.exit_code) == 2, done.output


def test_refusals_say_what_was_meant() -> None:
    assert "Did you mean stable?" in refused("--stage", "stabel")
    assert "no finite number" in refused("--requests-per-second", "nan")


def test_a_base_that_is_not_there_is_bad_input() -> None:
    done = command("--base", "no-such-base", "--adapter", SORT)
    assert getattr(done.exception, "exit_code", None) == 3
    wrong = command("--base", SORT, "--adapter", SORT)
    assert getattr(wrong.exception, "exit_code", None) == 3


def test_a_file_of_facts(tmp_path: Path) -> None:
    file = tmp_path / "facts.yaml"
    file.write_text(
        f"variants: 20\nstage: stable\nrequests-per-second: 3\nfurther_fine_tuning: no\n"
        f"quantize: no\ndisk: 500GB\ngpu_memory: 25769803776\nbase: {BASE}\nadapter: {SORT}\n"
    )
    told = document("--facts", str(file))
    assert told["decision"] == "keep"
    assert told["facts"]["further_fine_tuning"] is False
    assert told["facts"]["quantize"] == "none"
    assert told["facts"]["disk"] == 500 * 10**9
    assert told["costs"]["merge"]["bytes_each"] > 0
    # Options count more.
    assert document("--facts", str(file), "--variants", "1")["decision"] == "merge"
    assert document("--facts", str(file), "--further-fine-tuning")["facts"]["further_fine_tuning"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variant: 3\n", "Did you mean variants?"),
        ("bse: ./base\n", "Did you mean base?"),
        ("variants: 2.5\n", "no whole number"),
        ("variants: yes\n", "no whole number"),
        ("requests_per_second: .nan\n", "no finite number"),
        ("latency_budget_ms: fast\n", "no number"),
        ("stage: [stable]\n", "no stage"),
        ("further_fine_tuning: perhaps\n", "yes or no"),
        ("variants: 1\nvariants: 2\n", "twice"),
        ("requests_per_second: 1\nrequests-per-second: 2\n", "twice"),
        ("- variants\n", "no file of facts"),
        ("disk: lots\n", "not a size"),
        ("base: 3\n", "names no directory"),
    ],
    ids=lambda text: text.strip(),
)
def test_a_senseless_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "facts.yaml"
    file.write_text(text)
    done = command("--facts", str(file))
    assert getattr(done.exception, "exit_code", None) == 2
    assert said in str(done.exception)


def understood(line: str) -> None:
    """Whether the command line's own parser takes this line whole."""
    program, name, *words = shlex.split(line)
    assert program == "remerge"
    context = click.Context(group)
    found = group.get_command(context, name)
    assert found is not None, line
    while isinstance(found, click.Group):
        name, *words = words
        below = found.get_command(click.Context(found), name)
        assert below is not None, line
        found = below
    found.make_context(name, list(words))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--variants", "1", "--base", BASE, "--adapter", SORT),
        ("--variants", "1", "--quantize", "Q4_K_M", "--base", "./a b", "--adapter", SORT),
        ("--quantize", "fp8"),
        ("--stage", "stable", "--adapter", SORT, "--adapter", str(EXAMPLES / "adapters/add")),
        ("--variants", "1", "--stage", "iterating", "--requests-per-second", "200"),
    ],
    ids=str,
)
def test_every_command_named_is_one(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "a b")
    told = document(*words)
    for line in (told["next"], *told["after"]):
        understood(line)


def test_the_next_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))
    told = document("--variants", "1", "--stage", "stable", "--base", BASE, "--adapter", SORT)
    for line in (told["next"], "remerge store add merged"):
        done = CliRunner().invoke(group, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output


def terminal(answers: str, *words: str) -> tuple[int, str]:
    """The command on a terminal of its own, with these answers typed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "remerge", "advise", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    os.write(ours, answers.encode())
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(60), shown.decode()


def test_questions_on_a_terminal() -> None:
    """What was given is not asked; nonsense is asked again; Enter leaves a fact unknown."""
    code, shown = terminal("nine\n9\n\n\nno\n\n", "--stage", "stable")
    assert code == 0, shown
    assert "Which stage" not in shown
    assert shown.count("How many variants") == 2
    assert "no whole number" in shown
    assert "keep: " in shown
    assert "9 variants share one base" in shown


def test_nothing_is_asked_where_nobody_answers() -> None:
    code, shown = terminal("", "--json", "--variants", "1")
    assert code == 0
    assert json.loads(shown)["decision"] == "merge"
    done = subprocess.run(
        [sys.executable, "-m", "remerge", "advise"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "?" not in done.stderr
