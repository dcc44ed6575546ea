"""`remerge store trace` and `remerge store diff` as a user runs them, on the trained examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import remerge
from remerge.cli import group
from remerge.errors import BadInput
from tests.artefacts.test_tracing import write_gguf

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*words: object) -> Result:
    """In this process: a new one spends seconds on importing torch."""
    return CliRunner().invoke(group, ["store", *map(str, words)], standalone_mode=False)


def said(*words: object) -> dict[str, object]:
    done = run(*words, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    for task in ("sort", "dates"):
        remerge.merge(EXAMPLES / "base", EXAMPLES / "adapters" / task, place / task)
    return place


def test_trace_without_a_store(made: Path, tmp_path: Path) -> None:
    done = run("trace", made / "sort")
    assert done.return_value is None
    lines = done.stdout.splitlines()
    assert lines[0] == f"{made / 'sort'}: checkpoint, proven"
    told = json.loads((made / "sort" / "remerge.json").read_bytes())
    assert any(line.split() == ["adapter", "sort"] for line in lines)
    for word in (told["merge_key"], told["adapters"][0]["files"][-1]["sha256"]):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_trace_of_what_was_changed_exits_4(made: Path, tmp_path: Path) -> None:
    served = Path(shutil.copytree(made / "sort", tmp_path / "served"))
    shard = "model-00002-of-00002.safetensors"
    shutil.copy(made / "dates" / shard, served)
    done = run("trace", served)
    assert done.return_value == 4
    assert f"differs: {shard} is not as it was made" in done.stderr
    done = run("trace", served, "--json")
    assert done.return_value == 4
    assert json.loads(done.stdout)["strength"] == "partly proven"
    assert done.stderr == ""


def test_trace_of_what_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    done = run("trace", tmp_path / "x.bin")
    assert isinstance(done.exception, BadInput)
    assert done.exception.exit_code == 3
    assert "No store was asked" in str(done.exception)


def test_a_hostile_name_does_not_reach_the_terminal(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", None)
    content = path.read_bytes().replace(b"org/base", b"\x1b[2Jbase")
    path.write_bytes(content)
    done = run("trace", path)
    assert "\x1b" not in done.stdout
    assert "[2Jbase" in done.stdout


def test_trace_and_diff_in_a_store(made: Path, tmp_path: Path) -> None:
    place = ("--store", tmp_path / "store")
    names = {task: said("add", made / task, *place)["name"] for task in ("sort", "dates")}
    alone = Path(
        shutil.copy(made / "sort" / "model-00001-of-00002.safetensors", tmp_path / "a.safetensors")
    )
    found = said("trace", alone, *place)
    assert found["known_by"] == "store"
    assert names["sort"] in run("trace", alone, *place).stdout
    assert found["origins"][0]["names"] == [names["sort"]]  # type: ignore[index]
    told = said("diff", names["sort"], names["dates"], *place)
    assert told["same"] is False
    assert {row["part"] for row in told["rows"]} >= {"adapters"}  # type: ignore[index, union-attr]
    done = run("diff", names["sort"], names["dates"], *place)
    assert "they differ" in done.stdout
    assert "removed  sort -> none" in done.stdout
    assert "added    none -> dates" in done.stdout
    done = run("diff", names["sort"], made / "sort", *place)
    assert "no difference" in done.stdout


def test_diff_with_nothing(made: Path, tmp_path: Path) -> None:
    done = run("diff", made / "sort", tmp_path / "nothing")
    assert isinstance(done.exception, BadInput)
    assert "nothing at" in str(done.exception)
