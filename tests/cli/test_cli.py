"""The command line as a stranger meets it: output, JSON, exit codes, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny


def remerge(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remerge", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_merge_then_verify(inputs: Path, tmp_path: Path):
    done = remerge("merge", inputs / "base", inputs / "adapter", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "4 touched, 2 untouched, 0 refused" in done.stdout
    assert str(tmp_path / "out") in done.stdout
    done = remerge("verify", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


def test_json_is_one_document(inputs: Path, tmp_path: Path):
    plan = remerge("merge", inputs / "base", inputs / "adapter", "--dry-run", "--json")
    assert plan.stderr == ""
    planned = json.loads(plan.stdout)
    assert planned["tensors"] == {"touched": 4, "untouched": 2}
    assert {"files", "bytes_to_read", "bytes_to_write", "forecast"} <= planned.keys()
    out = tmp_path / "out"
    assert not out.exists()
    done = remerge("merge", inputs / "base", inputs / "adapter", "-o", out, "--json")
    merged = json.loads(done.stdout)
    assert merged["merge_key"] == planned["merge_key"]
    assert merged["bytes_written"] == planned["bytes_to_write"]
    assert json.loads(remerge("verify", out, "--json").stdout)["verified"] is True
    fit = json.loads(remerge("inspect", inputs / "base", inputs / "adapter", "--json").stdout)
    assert fit["fits"] is True
    assert set(fit["changed"]) == set(tiny.SHAPES)


def test_errors_are_json_too(tmp_path: Path):
    done = remerge("merge", tmp_path / "none", tmp_path / "none", "-o", tmp_path / "o", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 3
    assert error["what"]
    usage = json.loads(remerge("merge", tmp_path / "none", "--json").stdout)["error"]
    assert usage.keys() == error.keys()
    assert usage["exit_code"] == 2


def test_quiet_prints_nothing(inputs: Path, tmp_path: Path):
    done = remerge("merge", "-q", inputs / "base", inputs / "adapter", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_base_may_be_left_to_the_adapter(inputs: Path, tmp_path: Path):
    adapter = tmp_path / "adapter"
    tiny.write_adapter(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(inputs / "base")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = remerge("merge", adapter, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_inspect_says_what_things_are(inputs: Path, tmp_path: Path):
    assert "llama" in remerge("inspect", inputs / "base").stdout
    assert "LORA" in remerge("inspect", inputs / "adapter").stdout
    wrong = tmp_path / "adapter"
    tiny.write_adapter(wrong)
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    done = remerge("inspect", inputs / "base", wrong)
    assert done.returncode == 3
    misfits = [line for line in done.stdout.splitlines() if "misfit:" in line]
    assert all(any(name[:-7] in line for line in misfits) for name in tiny.SHAPES)
    shown = json.loads(remerge("inspect", inputs / "base", wrong, "--json").stdout)
    assert shown["fits"] is False
    assert len(shown["misfits"]) == len(misfits)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["merge"], 2, "ADAPTER"),
        (["merge", "{base}", "{adapter}", "-o", "x", "--method", "tie"], 2, "Did you mean ties"),
        (["merge", "{base}", "{adapter}", "-o", "x", "--density", "0.5"], 2, "has no --density"),
        (["merge", "{base}", "{adapter}", "-o", "x", "--weights", "1,2"], 2, "2 numbers for 1"),
        (["merge", "{base}", "{adapter}"], 2, "-o OUT"),
        (["merge", "{base}", "{adapter}", "-o", "{base}/x"], 2, "overlap"),
        (["merge", "{base}", "{adapter}", "-o", "{tmp}/no/where"], 2, "does not exist"),
        (["merge", "{base}", "{adapter}", "-o", "{tmp}/o", "--dtype", "int3"], 2, "dtype"),
        (["merge", "{base}", "{adapter}", "-o", "{tmp}/o", "--max-memory", "1MiB"], 2, "512MiB"),
        (["merge", "{base}", "{adapter}", "-o", "{tmp}/o", "--device", "tpu"], 2, "device"),
        (["merge", "{adapter}", "{base}", "-o", "{tmp}/o"], 3, "base"),
        (["verify", "{base}"], 3, "remerge.json"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_exit_codes(inputs: Path, tmp_path: Path, arguments: list[str], code: int, text: str):
    places = {"base": inputs / "base", "adapter": inputs / "adapter", "tmp": tmp_path}
    done = remerge(*(argument.format(**places) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, remerge.cli as c\n"
        "sys.argv = ['remerge', 'merge', '--help']\n"
        "try: c.main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
