"""`remerge merge --to adapter`: the summary, the JSON, the plan, refusals, and what follows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group
from remerge.errors import Unsupported, UsageError
from tests import tiny
from tests.outputs.test_combined_adapter import made


def command(*arguments: object) -> Result:
    """In this process: a new one spends seconds on importing torch."""
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    base, adapters = made(tmp_path_factory.mktemp("pair"), "llama")
    return base, adapters[0], adapters[1]


def test_from_plan_to_merge(pair: tuple[Path, Path, Path], tmp_path: Path):
    out = tmp_path / "new"
    asked = ("merge", *pair, "--to", "adapter", "--weights", "0.5,2")
    shown = command(*asked, "--dry-run", "-v")
    assert shown.exit_code == 0, shown.stderr
    assert "8 with exact factors, 0 with the nearest ones, 0 whole" in shown.stdout
    assert "model.layers.0.self_attn.q_proj.weight: exact, rank 7 at most" in shown.stdout
    planned = json.loads(command(*asked, "--dry-run", "--json").stdout)
    assert {record["most_rank"] for record in planned["tensors"]} == {1, 3, 4, 7}
    assert not out.exists()
    done = command(*asked, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert "exact but for the factors' rounding" in done.stdout
    assert "0.5 x adapter0, 2 x adapter1" in done.stdout
    document = json.loads(command(*asked, "-o", out, "--json").stdout)
    assert document["already_there"]
    assert document["merge_key"] == planned["merge_key"]
    assert (document["method"], document["weights"]) == ("sum", [0.5, 2.0])
    assert document["adapters"] == ["adapter0", "adapter1"]
    assert document["exact"]
    assert document["relative_error"] < 1e-7
    assert [record["name"] for record in document["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert command("verify", out).exit_code == 0
    found = json.loads(command("inspect", out, "--json").stdout)
    assert found["kind"] == "adapter"
    assert found["facts"]["combines"] == ["adapter0", "adapter1"]
    assert found["facts"]["weights"] == [0.5, 2.0]


def test_what_is_missed_is_said(pair: tuple[Path, Path, Path], tmp_path: Path):
    out = tmp_path / "new"
    asked = ("merge", *pair, "--to", "adapter", "--method", "ties", "--density", "0.3", "-o", out)
    done = command(*asked, "--svd-rank", "2")
    assert done.exit_code == 0, done.stderr
    assert "A larger --svd-rank comes nearer" in done.stderr
    assert done.stdout.count(" at rank 2: ") == 5
    document = json.loads(command(*asked, "--svd-rank", "3", "--overwrite", "--json").stdout)
    assert not document["exact"]
    assert 0.01 < document["relative_error"] < 1
    assert all(record["rank"] == 3 for record in document["tensors"])
    assert document["reproducible"] == "same-stack"


def test_a_recipe_file_asks_for_it(pair: tuple[Path, Path, Path], tmp_path: Path):
    base, one, other = pair
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {base}\nadapters:\n  - {one}\n  - {{path: {other}, weight: 0.5}}\n"
        f"to: adapter\ndtype: bfloat16\noutput: {tmp_path / 'file'}\n"
    )
    done = command("merge", "--recipe", recipe)
    assert done.exit_code == 0, done.stderr
    options = ("--to", "adapter", "--weights", "1,0.5", "--dtype", "bfloat16")
    command("merge", base, one, other, *options, "-o", tmp_path / "options")
    assert tiny.files_of(tmp_path / "file") == tiny.files_of(tmp_path / "options")


def test_usage(pair: tuple[Path, Path, Path], tmp_path: Path):
    options = ("--to", "adapter", "--requantize", "same", "-o", tmp_path / "out")
    done = command("merge", *pair, *options)
    assert isinstance(done.exception, UsageError)
    assert "--requantize" in done.exception.what
    done = command("merge", *pair, *options[:2], *options[4:], "--retention", "full")
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_base_that_no_class_has_is_refused(inputs: Path, tmp_path: Path):
    """The tiny base's tensors are not of the sizes that its configuration says."""
    given = (inputs / "base", inputs / "adapter", "-o", tmp_path / "out")
    done = command("merge", *given, "--to", "adapter")
    assert isinstance(done.exception, Unsupported)
    assert "model.layers.0.self_attn" in done.exception.what
    assert not list(tmp_path.iterdir())
