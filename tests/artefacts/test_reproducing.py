"""The command of a report makes the very same output again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import remerge
from remerge.artefacts.manifest import FileRecord, InputRecord, read_manifest
from remerge.artefacts.reproducing import command_of
from remerge.cli import group
from remerge.engines.forms import read_form
from remerge.merging.recipe import make_recipe
from remerge.validation.report.facts import gather
from tests.validation.report import made


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (("sort",), {}),
        (("sort",), {"dtype": "float16", "keep_float32": ["*.q_proj.weight", "*.k_*"]}),
        (("sort",), {"weights": -0.5, "max_shard_size": "2MB", "tokenizer": "base"}),
        (("sort",), {"to": "fp8", "ignore": ["re:.*down_proj"]}),
        (
            ("sort", "dates"),
            {"method": "ties", "weights": [0.7, 0.3], "parameters": {"density": [0.5, 0.25]}},
        ),
        (
            ("sort", "dates"),
            {"method": "dare_ties", "parameters": {"seed": 7, "normalize": False, "density": 0.9}},
        ),
    ],
)
def test_the_command_gives_the_same_merge_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...], options: dict[str, Any]
):
    for name, place in {"base": "base", **{t: f"adapters/{t}" for t in tasks}}.items():
        (tmp_path / name).symlink_to(made.EXAMPLES / place)
    monkeypatch.chdir(tmp_path)
    remerge.merge("base", tasks, "first", **options)
    command = gather(Path("first"), []).command
    assert command is not None
    program, *words = shlex.split(command)
    assert program == "remerge"
    words[words.index("-o") + 1] = "again"
    # The directories have the names of what the links lead to, as the manifest has.
    done = CliRunner().invoke(group, [*words, "--json"])
    assert done.exit_code == 0, done.output
    key = read_manifest(Path("first")).merge_key
    assert json.loads(done.stdout)["merge_key"] == key


def record(name: str, **more: Any) -> InputRecord:
    return InputRecord(name=name, files=(FileRecord(name="f", size=1, sha256="0"),), **more)


def test_inputs_of_the_hub_are_named_with_their_commits():
    base = record("org/base", hub_id="org/base", commit="abc")
    adapter = record("org/a", hub_id="org/a", commit="def", subfolder="sub")
    assert command_of(make_recipe(), base, [adapter], "out") == (
        "remerge merge org/base@abc org/a@def:sub -o out"
    )


@pytest.mark.parametrize(
    ("to", "given"),
    [
        ("gguf:Q4_K_M", {}),
        ("gguf:Q4_K_M", {"tensor_type": ["attn_v=Q8_0", "a|b=Q6_K"], "via": "bfloat16"}),
        ("onnx:int4", {}),
        ("openvino:int8", {}),
        ("gptq", {}),
        ("awq:W4A16_ASYM", {"group_size": 32}),
        ("gptqmodel:int8", {"calibration_samples": 8, "calibration_length": 64}),
    ],
)
def test_what_engines_write(to: str, given: dict[str, Any]):
    def recipe(to: str, given: dict[str, Any]):
        asked = read_form(to, given, lambda path: "0")
        assert asked is not None
        dtype = asked.form.dtype(asked.options)
        return make_recipe(to=asked.form.name, form=asked.options, dtype=dtype)

    wanted = recipe(to, given)
    words = shlex.split(command_of(wanted, record("b"), [record("a")], "out"))
    parsed = group.get_command(None, "merge").make_context("merge", words[2:])  # type: ignore
    options = {k: v for k, v in parsed.params.items() if k in given or k == "to"}
    assert parsed.params["inputs"] == ("b", "a")
    assert parsed.params["dtype"] == "keep"
    assert recipe(options.pop("to"), options) == wanted
