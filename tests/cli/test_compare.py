"""``remerge compare`` and ``merge --gate``: documents, exit codes, recipes, what is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import remerge
from remerge.artefacts.test_result import read_statements, read_test_results
from remerge.cli import group
from remerge.errors import BadInput, NotReproduced, UsageError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE, SORT, ADD = EXAMPLES / "base", EXAMPLES / "adapters" / "sort", EXAMPLES / "adapters" / "add"
QUESTIONS = EXAMPLES / "eval" / "sort.jsonl"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    remerge.merge(BASE, SORT, out)
    return out


@pytest.fixture
def out(merged: Path, tmp_path: Path) -> Path:
    shutil.copytree(merged, tmp_path / "out")
    return tmp_path / "out"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def compare(*arguments: object) -> Result:
    return command("compare", *arguments)


def test_one_document_and_a_result_beside_the_artefact(out: Path):
    before = (out / "remerge.json").read_bytes()
    done = compare(BASE, SORT, out, "--eval", f"digits={QUESTIONS}", "--limit", 12, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["passed"], found["verdict"]) == (True, "passed")
    (task,) = found["tasks"]
    assert (task["name"], task["questions"], task["scorer"]) == ("digits", 12, "exact")
    assert task["adapter"] == task["merged"]
    assert found["command"] == "remerge compare base sort out --eval digits=sort.jsonl --limit 12"
    assert "/" not in found["command"].replace(".jsonl", "")
    # The merge's own manifest is what it was; the result has a date and digests of its own.
    assert (out / "remerge.json").read_bytes() == before
    (statement,) = read_statements(out)
    assert statement.predicate.result == "PASSED"
    named = {one.name: one.digest.sha256 for one in statement.subject}
    recorded = {one["name"]: one["sha256"] for one in json.loads(before)["outputs"]}
    assert named == recorded
    assert [one.name for one in statement.predicate.configuration] == ["sort.jsonl"]
    assert str(out.parent) not in json.dumps(statement.model_dump(mode="json"))


def test_the_manifest_names_what_is_not_given(out: Path, tmp_path: Path):
    done = compare(out, "--no-record")
    assert isinstance(done.exception, BadInput)
    assert "remerge compare BASE ADAPTER OUT" in str(done.exception)
    # Whoever merges here knows where base and adapter lie.
    remerge.merge(BASE, SORT, tmp_path / "known")
    done = compare(out, "--no-record")
    assert done.exit_code == 0, done.output
    assert "PASSED" in done.stdout and "built-in" in done.stdout
    assert not (out / "remerge.tests").exists()
    (out / "remerge.json").unlink()
    done = compare(out)
    assert isinstance(done.exception, UsageError)
    assert "remerge compare BASE ADAPTER OUT" in str(done.exception)


def test_the_gate_is_the_exit_code(out: Path):
    done = compare(BASE, SORT, out, "--max-kl", 1e-9)
    assert done.exit_code == 5
    assert "KL divergence, built-in" in done.stdout and "FAILS" in done.stdout
    (result,) = read_test_results(out)
    assert result.verdict == "failed"
    # Questions are known by now; nothing but the limit is another.
    done = compare(BASE, SORT, out, "--max-kl", 0.02, "--min-agreement", 0.9, "-q")
    assert (done.exit_code, done.stdout) == (0, "")
    assert [one.verdict for one in read_test_results(out)] == ["failed", "passed"]
    assert all(cost.asked == 0 for cost in read_test_results(out)[1].costs)


def test_an_adapter_that_is_not_the_manifests(out: Path):
    done = compare(BASE, ADD, out, "--json")
    assert done.exit_code == 5
    failed = {g["name"] for g in json.loads(done.stdout)["gates"] if not g["passed"]}
    assert {"made from", "weights", "KL divergence, built-in"} <= failed
    assert "digests" not in failed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval", "none.jsonl"], "--eval none.jsonl cannot be read"),
        (["--eval", str(QUESTIONS), "--eval", str(QUESTIONS)], "are both named sort"),
        (["--scorer", "nearly"], "There is no scorer 'nearly'"),
        (["--max-drop", "2"], "max_drop 2.0 is no number from 0 to 1"),
        (["--text", "none.txt"], "none.txt cannot be read"),
        (["--engine", "llama.cpp"], "llama.cpp does not read checkpoints"),
        (["--format", "Q9"], "There are no limits for the format 'Q9'"),
        (["--endpoint", "localhost"], "names no server"),
        (["--endpoint", "http://127.0.0.1:9"], "A server is asked questions"),
        (["--device", "tpu"], "Unknown device 'tpu'"),
    ],
)
def test_what_makes_no_sense(merged: Path, arguments: list[str], words: str):
    done = compare(BASE, SORT, merged, *arguments)
    assert isinstance(done.exception, UsageError | BadInput), done.output
    assert words in str(done.exception)


def test_only_what_passes_is_published(tmp_path: Path):
    out = tmp_path / "out"
    done = command("merge", BASE, SORT, "-o", out, "--gate", "--max-kl", "1e-9")
    assert isinstance(done.exception, NotReproduced)
    assert "The gate failed: KL divergence, built-in" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    done = command("merge", BASE, SORT, "-o", out, "--gate", "--eval", QUESTIONS, "--limit", 5)
    assert done.exit_code == 0, done.output
    assert "score of sort" in done.stdout
    (result,) = read_test_results(out)
    assert result.command.startswith("remerge compare base sort out ")
    assert remerge.verify(out).files
    # What is there already is judged as well, and stays.
    done = command("merge", BASE, SORT, "-o", out, "--min-agreement", 1, "--max-kl", 0)
    assert isinstance(done.exception, NotReproduced)
    assert len(read_test_results(out)) == 2


def test_a_gate_in_a_recipe(tmp_path: Path):
    shutil.copy(QUESTIONS, tmp_path / "sort.jsonl")
    recipe = tmp_path / "recipe.yaml"
    document = {
        "base": str(BASE),
        "adapters": [str(SORT)],
        "output": str(tmp_path / "out"),
        "gate": {"eval": {"digits": "sort.jsonl"}, "limit": 4, "max-drop": 0.01},
    }
    recipe.write_text(yaml.safe_dump(document))
    done = command("merge", "--recipe", recipe)
    assert done.exit_code == 0, done.output
    (result,) = read_test_results(tmp_path / "out")
    assert (result.tasks[0].name, result.tasks[0].questions) == ("digits", 4)
    done = compare(tmp_path / "out", "--recipe", recipe, "--limit", 3, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tasks"][0]["questions"] == 3


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("often", "gate 'often' is no list of keys and values"),
        ({"max_kll": 1}, "gate: max_kll is not known"),
        ({"max_kl": "little"}, "gate: max_kl 'little' is no number"),
        ({"eval": 3}, "eval"),
    ],
)
def test_a_gate_that_is_none(tmp_path: Path, block: object, words: str):
    recipe = tmp_path / "recipe.yaml"
    document = {"base": str(BASE), "adapters": [str(SORT)], "output": "out", "gate": block}
    recipe.write_text(yaml.safe_dump(document))
    done = command("merge", "--recipe", recipe)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_an_adapter_is_not_judged(tmp_path: Path):
    done = command("merge", BASE, SORT, ADD, "--to", "adapter", "-o", tmp_path / "a", "--gate")
    assert done.exit_code == 2
    assert "--gate judges a model" in done.output
