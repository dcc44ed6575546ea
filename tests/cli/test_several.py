"""``remerge merge`` of several adapters, from recipe to verify."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

import remerge
from remerge.artefacts import making
from remerge.cli import group
from remerge.errors import BadInput, RemergeError
from tests import tiny
from tests.merging import adapted, quantised
from tests.outputs import killing


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``base``, ``adapter``, and ``b`` and ``c`` of their own values."""
    (tmp_path / "base").symlink_to(inputs / "base")
    (tmp_path / "adapter").symlink_to(inputs / "adapter")
    tiny.write_adapter(tmp_path / "b", seed=31)
    tiny.write_adapter(tmp_path / "c", seed=32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = CliRunner().invoke(group, list(arguments))
    if isinstance(done.exception, RemergeError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def document(*arguments: str) -> dict[str, Any]:
    code, out, error = run(*arguments, "--json")
    assert code == 0, error
    return json.loads(out)


def test_the_summary_says_what_was_combined(place: Path):
    code, out, _ = run("merge", "base", "adapter", "b", "-o", "out", "--weights", "0.7,-0.3")
    assert code == 0
    assert "adapters     0.7 x adapter, -0.3 x b" in out
    assert "method       sum" in out
    code, out, _ = run("merge", "base", "adapter", "-o", "one")
    assert "method" not in out
    code, out, _ = run(
        "merge", "base", "adapter", "b", "--method", "ties", "--density", "0.5,0.25", "--dry-run"
    )
    assert "method       ties, density 0.5/0.25, scope tensor" in out
    assert "normalize yes, lambda 1" in out


def test_json_says_the_same(place: Path):
    asked = ["base", "adapter", "b", "--method", "ties", "--density", "0.5", "--no-normalize"]
    planned = document("merge", *asked, "--dry-run")
    merged = document("merge", *asked, "-o", "out")
    for found in (planned, merged):
        assert found["method"] == "ties"
        assert found["adapters"] == ["adapter", "b"]
        assert found["weights"] == [1.0, 1.0]
        assert found["parameters"]["density"] == [0.5, 0.5]
        assert found["parameters"]["normalize"] is False
    assert merged["merge_key"] == planned["merge_key"]


def test_adapters_of_one_name_are_numbered(place: Path):
    shutil.copytree(place / "b", place / "x" / "adapter")
    found = document("merge", "base", "adapter", "x/adapter", "b", "--dry-run")
    assert found["adapters"] == ["adapter#1", "adapter#2", "b"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["merge", "-o", "o"], 2, "[BASE] ADAPTER"),
        (["merge", "b", "c", "-o", "o"], 3, "trained on base. The base comes first: remerge merge"),
        (["merge", "base", "b", "c"], 2, "-o OUT"),
        (["merge", "base", "b", "c", "-o", "o", "--weights", "1,x"], 2, "'1,x' is no number"),
        (["merge", "base", "b", "c", "-o", "o", "--weights", "1,2,3"], 2, "3 numbers for 2"),
        (["merge", "base", "b", "c", "-o", "o", "--weights", "nan"], 2, "not finite"),
        (["merge", "base", "b", "c", "-o", "o", "--density", "1"], 2, "sum has no --density"),
        (
            ["merge", "base", "b", "c", "-o", "o", "--method", "ties", "--density", "2"],
            2,
            "--density",
        ),
        (["merge", "base", "b", "c", "-o", "o", "--prefer", "d"], 2, "no adapter 'd'"),
        (["merge", "base", "b", "c", "-o", "o", "--tokenizer", "d"], 2, "no adapter 'd'"),
        (["merge", "base", "b", "c", "-o", "o", "--tokenizer", "c"], 3, "brings no tokenizer"),
        (["merge", "base", "b", "d", "-o", "o"], 3, "'d' is neither"),
        (["merge", "base", "b", "-o", "b/o"], 2, "overlap"),
        (["merge", "--recipe", "none.yaml"], 2, "cannot be read"),
    ],
)
def test_refusals(place: Path, arguments: list[str], code: int, said: str):
    found, _, error = run(*arguments)
    assert found == code
    assert said in error
    assert not (place / "o").exists()


def test_tokenizers(place: Path):
    for name, text in (("b", "1"), ("c", "2")):
        (place / name / "tokenizer.json").write_text(text)
        (place / name / "tokenizer_config.json").write_text("{}")
    code, _, error = run("merge", "base", "b", "c", "-o", "out")
    assert code == 3
    assert "different tokenizers (tokenizer.json differs)" in error
    assert "--tokenizer b" in error
    for asked, text in (("c", "2"), ("1", "1")):
        out = f"out-{asked}"
        assert run("merge", "base", "b", "c", "-o", out, "--tokenizer", asked)[0] == 0
        assert (place / out / "tokenizer.json").read_text() == text
    (place / "c" / "tokenizer.json").write_text("1")
    assert run("merge", "base", "b", "c", "-o", "same")[0] == 0
    assert (place / "same" / "tokenizer.json").read_text() == "1"
    assert run("merge", "base", "b", "c", "-o", "none", "--tokenizer", "base")[0] == 0
    assert not (place / "none" / "tokenizer.json").exists()


# --- recipes -------------------------------------------------------------------------------------


def write(recipe: Any, name: str = "r.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(recipe))
    return name


def test_a_recipe_is_what_its_options_are(place: Path):
    recipe = write(
        {
            "base": "base",
            "adapters": [{"path": "adapter", "density": 0.25}, {"path": "b", "weight": 0.5}],
            "method": "ties",
            "keep-float32": ["*.q_proj.weight"],
            "output": "one",
        }
    )
    assert run("merge", "--recipe", recipe)[0] == 0
    options = ["--method", "ties", "--density", "0.25,1", "--weights", "1,0.5"]
    options += ["--keep-float32", "*.q_proj.weight"]
    assert run("merge", "base", "adapter", "b", *options, "-o", "two")[0] == 0
    assert tiny.files_of(place / "one") == tiny.files_of(place / "two")
    assert document("merge", "--recipe", recipe, "--dry-run")["method"] == "ties"


def test_the_command_line_counts_more(place: Path):
    recipe = write({"base": "none", "adapters": ["adapter", "b"], "method": "ties", "density": 0.5})
    found = document("merge", "base", "c", "b", "--recipe", recipe, "--dry-run", "--density", "1")
    assert found["adapters"] == ["c", "b"]
    assert found["parameters"]["density"] == [1.0, 1.0]
    recipe = write({"base": "base", "adapters": ["adapter", "b"], "method": "ties", "density": 0.5})
    # One input is an adapter, as it is without a recipe.
    assert document("merge", "c", "--recipe", recipe, "--dry-run")["adapters"] == ["c"]
    found = document("merge", "--recipe", recipe, "--dry-run", "--method", "sum")
    assert (found["method"], found["parameters"]) == ("sum", {})
    assert "--method sum has no density: left out." in found["notes"]
    code, _, error = run("merge", "--recipe", recipe)
    assert code == 2
    assert "-o OUT" in error


def test_mergekits_file_is_the_same_merge(place: Path):
    models = [
        {"model": f"base+{name}", "parameters": {"weight": weight, "density": 0.5}}
        for name, weight in (("adapter", 0.5), ("b", 1.5))
    ]
    asked = {"models": models, "merge_method": "ties", "base_model": "base"}
    assert run("merge", "--recipe", write(asked), "-o", "one")[0] == 0
    options = ["--method", "ties", "--density", "0.5", "--weights", "0.5,1.5", "-o", "two"]
    assert run("merge", "base", "adapter", "b", *options)[0] == 0
    assert tiny.files_of(place / "one") == tiny.files_of(place / "two")


def test_llama_factorys_file_is_one_after_the_other(place: Path):
    asked = {
        "model_name_or_path": "base",
        "adapter_name_or_path": "adapter,b",
        "export_dir": "one",
        "template": "qwen",
    }
    code, _, notes = run("merge", "--recipe", write(asked))
    assert code == 0
    assert "sequential" in notes
    remerge.merge("base", "adapter", "first")
    remerge.merge("first", "b", "two")
    one, two = (tiny.read_tensors(place / name) for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_axolotls_file_simulates_nf4(place: Path):
    (place / "run").mkdir()
    asked = {"base_model": "base", "lora_model_dir": "b", "output_dir": "run", "adapter": "qlora"}
    assert document("merge", "--recipe", write(asked))["output"].endswith("run/merged")
    manifest = json.loads((place / "run/merged/remerge.json").read_text())
    assert manifest["recipe"]["simulate"] == "nf4"
    plain = document("merge", "--recipe", write(asked), "--simulate", "none", "--dry-run")
    assert plain["plan_id"] == remerge.plan("base", "b").plan_id


# --- what was merged stays what it is ------------------------------------------------------------


def test_verify_finds_adapters_that_moved(place: Path):
    assert run("merge", "base", "b", "c", "-o", "out", "--weights", "0.5,2")[0] == 0
    assert run("verify", "out")[0] == 0
    (place / "c").rename(place / "moved")
    code, _, error = run("verify", "out")
    assert code == 3
    assert "--adapter" in error
    assert run("verify", "out", "--adapter", "b", "--adapter", "moved")[0] == 0
    code, _, error = run("verify", "out", "--adapter", "b")
    assert code == 2
    assert "in this order: b, c" in error
    assert run("verify", "out", "--adapter", "moved", "--adapter", "b")[0] == 4


@pytest.mark.parametrize("method", ["sum", "ties", "sequential", "svd"])
def test_the_same_command_again_finds_it_there(place: Path, method: str):
    asked = ["merge", "base", "adapter", "b", "-o", "out", "--method", method]
    assert document(*asked)["already_there"] is False
    before = tiny.files_of(place / "out", without=())
    assert document(*asked)["already_there"] is True
    assert tiny.files_of(place / "out", without=()) == before
    assert run("verify", "out")[0] == 0
    assert run(*asked, "--weights", "0.5")[0] == 2
    (place / "adapter").unlink()
    tiny.write_adapter(place / "adapter", seed=99)
    assert run(*asked)[0] == 2


@pytest.mark.parametrize(
    ("method", "kill_at"), [("sum", 10), ("sum", 25), ("ties", 25), ("sequential", 25), ("svd", 25)]
)
def test_resumed_after_a_kill(place: Path, method: str, kill_at: int):
    options: dict[str, Any] = {"method": method, "weights": [0.5, 1.5]}
    both = [place / "adapter", place / "b"]
    remerge.merge("base", both, "whole", **options)
    assert killing.run(place, place / "out", kill_at, adapters=both, **options) == -9
    remerge.merge("base", both, "out", **options)
    assert tiny.files_of(place / "out") == tiny.files_of(place / "whole")
    assert list(place.glob(".*")) == []


def test_an_adapter_that_changes_during_the_merge(place: Path, monkeypatch: pytest.MonkeyPatch):
    derive = making.derive

    def changing(*arguments: Any) -> Any:
        done = derive(*arguments)
        path = place / "c" / "adapter_model.safetensors"
        os.utime(path)
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        return done

    monkeypatch.setattr(making, "derive", changing)
    with pytest.raises(BadInput, match="An adapter changed while it was merged"):
        remerge.merge("base", ["b", "c"], "out")
    assert not (place / "out").exists()


# --- quantised bases -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in NF4, the same dequantised, and two adapters."""
    root = tmp_path_factory.mktemp("nf4")
    quantised.write_plain(root / "plain")
    quantised.write_adapter(root / "plain", root / "a")
    quantised.write_adapter(root / "plain", root / "b", scale=0.03)
    quantised.quantise(root / "plain", root / "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantised.dequantised(root / "nf4", root / "plain", root / "decoded")
    return root


@pytest.mark.parametrize("method", ["sum", "ties", "sequential"])
def test_several_into_a_quantised_base(nf4: Path, tmp_path: Path, method: str):
    """The same as into the base that it decodes to."""
    options: dict[str, Any] = {"method": method, "weights": [0.5, 1.25]}
    both = [nf4 / "a", nf4 / "b"]
    remerge.merge(nf4 / "nf4", both, tmp_path / "out", **options)
    found = tiny.read_tensors(tmp_path / "out")
    expected = adapted.read(remerge.open_merged(nf4 / "decoded", both, **options))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    remerge.verify(tmp_path / "out")


def test_several_written_back_as_they_were(nf4: Path, tmp_path: Path):
    """Twice a half is one: the same codes as of the adapter alone."""
    remerge.merge(nf4 / "nf4", nf4 / "a", tmp_path / "one", requantize="same")
    both = [nf4 / "a", nf4 / "a"]
    remerge.merge(nf4 / "nf4", both, tmp_path / "two", weights=0.5, requantize="same")
    one, two = (tiny.read_tensors(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    remerge.verify(tmp_path / "two")
    code, _, error = run(
        *("merge", str(nf4 / "nf4"), str(nf4 / "a"), str(nf4 / "b"), "-o", str(tmp_path / "o")),
        *("--requantize", "same", "--method", "sequential"),
    )
    assert code == 2
    assert "rounds between adapters" in error


def test_the_help_says_which_methods_have_an_option():
    from fnmatch import fnmatchcase

    from remerge.cli.merge import command
    from remerge.merging.asked import parameters_of
    from remerge.merging.methods.registry import METHODS

    told = {
        (option.name or "").rstrip("_"): option.help or ""
        for option in command.params
        if isinstance(option, click.Option)
    }
    for name in {name for method in METHODS for name in parameters_of(method)}:
        patterns = told[name].rstrip(".").rsplit(": ", 1)[1].split(", ")
        having = {method for method in METHODS if name in parameters_of(method)}
        for pattern in patterns:
            assert pattern == "--to adapter" or any(fnmatchcase(m, pattern) for m in having)
        shown = {m for m in METHODS for pattern in patterns if fnmatchcase(m, pattern)}
        assert shown == having, name
    text = run("merge", "--help")[1]
    assert text.index("--dry-run") < text.index("Options of methods") < text.index("--density N")
