"""Promoting what an engine wrote: checked where it will be served."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

import remerge
from remerge.serving.promoting import Step
from tests.artefacts.store.oracle import log, see
from tests.engines.places import needs, python_of

pytestmark = needs("llama.cpp")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PYTHONS = {"llama.cpp": str(python_of("llama.cpp"))}
# The weights of one layer's down projection are the negative of what they were.
_NEGATE = """
import sys, gguf
for tensor in gguf.GGUFReader(sys.argv[1], "r+").tensors:
    if tensor.name == "blk.1.ffn_down.weight":
        tensor.data.view("uint16")[:] ^= 0x8000
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "model.gguf"
    base, adapter = EXAMPLES / "base", EXAMPLES / "adapters/sort"
    remerge.export(base, out, adapters=adapter, to="gguf:F16", engine_python=PYTHONS)
    return out


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMERGE_STORE", str(tmp_path / "store"))
    # Whose base and adapters are not where they were merged from.
    remerge.Store().add(EXAMPLES / "base", name="base")
    remerge.Store().add(EXAMPLES / "adapters/sort", name="sort")


def test_a_gguf_file_is_loaded_by_llama_cpp(made: Path) -> None:
    store = remerge.Store()
    store.add(made, name="quantised")
    gate = {"evaluations": [str(EXAMPLES / "eval/sort.jsonl")], "limit": 10}
    done = remerge.promote("quantised", gate=gate, engine_python=PYTHONS)
    assert [step.state for step in done.steps] == ["passed"] * 4
    shown = log(store.root)[-1]["steps"]
    assert (shown["check"]["engine"], shown["check"]["word"]) == ("llama.cpp", "served")
    assert "llama.cpp" in shown["check"]["versions"]
    again = remerge.promote("quantised", "staging", gate=gate, engine_python=PYTHONS)
    assert [step.state for step in again.steps] == ["passed", "reused", "passed", "passed"]


def test_weights_that_only_a_comparison_sees(made: Path, tmp_path: Path) -> None:
    """Altered, and told in a manifest that claims no derivation: the digests all agree."""
    place = tmp_path / "altered"
    shutil.copytree(made.parent, place)
    file, beside = place / made.name, place / f"{made.name}.remerge.json"
    subprocess.run([PYTHONS["llama.cpp"], "-c", _NEGATE, str(file)], check=True)
    manifest = json.loads(beside.read_bytes())
    manifest["reproducible"] = "not proven"
    manifest["outputs"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    beside.write_text(json.dumps(manifest))
    store = remerge.Store()
    store.add(file, name="altered")
    before, lines = see(store.root), log(store.root)
    steps: list[Step] = []
    with pytest.raises(remerge.NotReproduced, match="Refused at step 2 of 4, compare gate"):
        remerge.promote("altered", engine_python=PYTHONS, told=steps.append)
    assert [step.state for step in steps] == ["passed", "failed", "not run", "not run"]
    assert "as their manifest has them" in steps[0].summary
    assert (see(store.root), log(store.root)) == (before, lines)


def test_an_engine_that_is_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = remerge.Store()
    store.add(made, name="quantised")
    with pytest.raises(remerge.UsageError, match=r"Refused at step 1 of 4.*engines install"):
        remerge.promote("quantised")
