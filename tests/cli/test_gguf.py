"""`remerge merge --to gguf` and `remerge engines`: what is refused before any engine runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.engines.registry import ENGINES
from remerge.errors import BadInput, UsageError
from tests import tiny

INSTALL = "Run: remerge engines install llama.cpp"


def command(*arguments: object) -> Result:
    """In this process: a new one spends seconds on importing torch."""
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def merge(inputs: Path, out: Path, *options: object) -> Result:
    return command("merge", inputs / "base", inputs / "adapter", "-o", out, *options)


def refused(done: Result) -> str:
    assert isinstance(done.exception, UsageError), (done.exception, done.output)
    assert done.stdout == ""
    return str(done.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "gguf"), "--to gguf names no file type"),
        (("--to", "gguf:"), "Choose gguf:TYPE with one of F32, F16, BF16, Q8_0"),
        (("--to", "gguf:Q4_K_X"), "--to gguf:Q4_K_X names no file type"),
        # A type of tensors, and none of files.
        (("--to", "gguf:Q4_K"), "--to gguf:Q4_K names no file type"),
        (("--to", "gguf:Q4_K_M:Q8_0"), "names no file type"),
        (("--to", "GGUF:Q4_K_M"), "--to 'GGUF:Q4_K_M' is not known"),
        pytest.param(
            ("--to", "ggufs:Q4_K_M"),
            "--to ",
        ),
        (("--to", "gguf:F16", "--dtype", "bfloat16"), "write --via bfloat16"),
        (("--to", "gguf:F16", "--dtype", "bfloat16", "--via", "bfloat16"), "--dtype bfloat16"),
        (("--to", "gguf:F16", "--via", "int3"), "--via 'int3' is no dtype"),
        (("--to", "gguf:F16", "--tensor-type", "attn_v"), "'attn_v' is no PATTERN=TYPE"),
        (("--to", "gguf:F16", "--tensor-type", "=Q8_0"), "'=Q8_0' is no PATTERN=TYPE"),
        (("--to", "gguf:F16", "--tensor-type", "attn_v="), "'attn_v=' is no PATTERN=TYPE"),
        (("--to", "gguf:F16", "--tensor-type", "attn_v=Q4_K_M"), "no PATTERN=TYPE"),
        (("--to", "gguf:F16", "--tensor-type", "(=Q8_0"), "'(=Q8_0' is no PATTERN=TYPE"),
        (("--to", "gguf:F16", "--tensor-type", "a=F16", "--tensor-type", "b"), "'b' is no"),
        (("--tensor-type", "attn_v=Q8_0"), "belongs to --to gguf"),
        (("--to", "adapter", "--tensor-type", "attn_v=Q8_0"), "belongs to --to gguf"),
        (("--via", "bfloat16"), "belongs to --to gguf"),
        (("--to", "adapter", "--via", "bfloat16"), "belongs to --to gguf"),
        (("--to", "gguf:F16", "--max-shard-size", "5GB"), "--max-shard-size means nothing"),
        (("--to", "gguf:F16", "--requantize", "same"), "--requantize means nothing"),
        (("--to", "gguf:F16", "--keep-float32", "*"), "--keep-float32 means nothing"),
        (("--to", "gguf:F16", "--copy-code"), "--copy-code means nothing"),
        (("--to", "gguf:F16", "--engine-python", "llama.cpp"), "no NAME=PATH"),
        (("--to", "gguf:F16", "--engine-python", "=/bin/sh"), "no NAME=PATH"),
        (("--to", "gguf:F16", "--engine-python", "llama.cpp="), "no NAME=PATH"),
        (("--to", "gguf:F16", "--engine-python", "llama.cpp=/no/where"), "/no/where is no program"),
        (("--to", "gguf:F16"), INSTALL),
        (("--to", "gguf:q4_k_m"), INSTALL),
        (("--to", "gguf:F16", "--tensor-type", "a=F16"), "which quantises nothing"),
        (("--to", "gguf:Q8_0", "--imatrix", "/no/where"), "--imatrix /no/where cannot be read"),
        (("--to", "gguf:Q8_0", "--via", "bfloat16", "--tensor-type", "a=b=f16"), INSTALL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refusals(inputs: Path, tmp_path: Path, options: tuple[str, ...], said: str):
    found = refused(merge(inputs, tmp_path / "out", *options))
    assert said in found
    assert (INSTALL in found) == (said == INSTALL)
    assert list(tmp_path.iterdir()) == []


def test_without_the_engine_what_is_there_stays(inputs: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("kept")
    done = merge(inputs, out, "--to", "gguf:Q4_K_M", "--overwrite", "--json")
    assert INSTALL in refused(done)
    assert tiny.files_of(tmp_path) == {"out/kept": b"kept"}


def test_an_engine_that_is_none_leaves_nothing(inputs: Path, tmp_path: Path):
    """An interpreter without the engine: the crash is told, and no output stays."""
    out, option = tmp_path / "out", f"llama.cpp={tmp_path / 'python'}"
    program = "#!/bin/sh\ncat >/dev/null\necho 'No module named gguf' >&2\nexit 1\n"
    (tmp_path / "python").write_text(program)
    (tmp_path / "python").chmod(0o755)
    done = merge(inputs, out, "--to", "gguf:F16", "--engine-python", option)
    assert done.exit_code != 0
    assert "No module named gguf" in str(done.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"python"}


def test_a_directory_is_no_interpreter(inputs: Path, tmp_path: Path):
    option = f"llama.cpp={tmp_path}"
    done = merge(inputs, tmp_path / "out", "--to", "gguf:F16", "--engine-python", option)
    assert "no program" in refused(done)


def test_an_engine_that_does_not_exist_is_not_passed_over(inputs: Path, tmp_path: Path):
    option = f"llamacpp={sys.executable}"
    done = merge(inputs, tmp_path / "out", "--to", "gguf:F16", "--engine-python", option)
    assert "llamacpp" in refused(done)


@pytest.mark.parametrize(
    "options", [("--retention", "full"), ("--device", "tpu"), ("--max-memory", "1MiB")]
)
def test_options_are_not_passed_over(inputs: Path, tmp_path: Path, options: tuple[str, ...]):
    """What a checkpoint would refuse, or a GGUF file has no use for."""
    done = merge(inputs, tmp_path / "out", "--to", "gguf:F16", *options)
    assert done.exit_code != 0
    assert INSTALL not in str(done.exception)


def test_a_malformed_option_is_refused_everywhere(inputs: Path, tmp_path: Path):
    done = merge(inputs, tmp_path / "out", "--engine-python", "llama.cpp", "--dry-run")
    assert "no NAME=PATH" in refused(done)


def test_a_dry_run_needs_no_engine(inputs: Path, tmp_path: Path):
    done = merge(inputs, tmp_path / "out", "--to", "gguf:Q4_K_M", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tensors"] == {"touched": 4, "untouched": 2}
    assert list(tmp_path.iterdir()) == []
    done = merge(inputs, tmp_path / "out", "--to", "gguf:nope", "--dry-run")
    assert "names no file type" in refused(done)


def test_a_recipe_file_asks_for_it(inputs: Path, tmp_path: Path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        f"base: {inputs / 'base'}\nadapters: [{inputs / 'adapter'}]\n"
        f"to: gguf:Q4_K_M\noutput: {out}\n"
    )
    assert INSTALL in refused(command("merge", "--recipe", recipe))
    assert "--dtype float16" in refused(command("merge", "--recipe", recipe, "--dtype", "float16"))
    assert not out.exists()


def test_engines_list():
    place = f"{os.environ['XDG_CACHE_HOME']}/remerge/engines/llama.cpp"
    done = command("engines", "list")
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "llama.cpp" in line]
    assert "remerge merge --to gguf:Q4_K_M" in line
    assert "not installed" in line
    found = json.loads(command("engines", "list", "--json").stdout)["engines"]
    assert {
        "name": "llama.cpp",
        "enables": LLAMA_CPP.enables,
        "installed": False,
        "state": "not installed",
        "place": place,
        "bytes": LLAMA_CPP.disk,
    } in found


def test_engines_remove():
    place = Path(os.environ["XDG_CACHE_HOME"]) / "remerge" / "engines" / "llama.cpp"
    done = command("engines", "remove", "llama.cpp")
    assert (done.exit_code, done.stdout) == (0, f"not there: {place}\n")
    # What a killed installation left.
    (place / "lib").mkdir(parents=True)
    done = command("engines", "remove", "llama.cpp")
    assert (done.exit_code, done.stdout) == (0, f"removed: {place}\n")
    assert not place.exists()
    found = json.loads(command("engines", "remove", "llama.cpp", "--json").stdout)
    assert found == {"name": "llama.cpp", "place": str(place), "removed": False}


@pytest.mark.parametrize("verb", ["install", "check", "remove"])
def test_engines_that_are_none(verb: str):
    said = refused(command("engines", verb, "nope"))
    assert said == f"There is no engine 'nope'. Choose {', '.join(ENGINES)}."
    assert command("engines", verb).exit_code == 2


def test_engines_check():
    assert INSTALL in refused(command("engines", "check", "llama.cpp"))
    # The tests' own interpreter has remerge and no llama.cpp.
    option = ("--engine-python", f"llama.cpp={sys.executable}")
    done = command("engines", "check", "llama.cpp", *option)
    assert isinstance(done.exception, BadInput)
    assert "has no package for 'conversion'" in done.exception.what
    assert done.stdout == ""
