"""Checking GGUF files in llama.cpp: right ones pass, every kind of wrong one fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import remerge
from remerge.errors import UsageError
from remerge.validation.check import CheckReport
from tests.engines import llama_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BASE, ADAPTER = ROOT / "examples" / "base", ROOT / "examples" / "adapters" / "sort"
ENGINE = Path(
    os.environ.get("REMERGE_TEST_LLAMA", ROOT / ".engines/remerge/engines/llama.cpp/bin/python")
)
PYTHONS = {"llama.cpp": str(ENGINE)}

# Rows of queries and keys once more in the order of GGUF, as a converter does that takes them for
# a checkpoint's; nothing of the file but these bytes changes.
_PERMUTE = """
import sys, numpy as np, gguf
for tensor in gguf.GGUFReader(sys.argv[1], "r+").tensors:
    if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        rows = tensor.data.reshape(-1, 2, 32, tensor.data.shape[-1])
        tensor.data[:] = rows.swapaxes(1, 2).reshape(tensor.data.shape).copy()
"""


def make(out: Path, to: str, base: Path = BASE, adapter: Path = ADAPTER, **options: object) -> Path:
    remerge.export(
        base,
        out,
        adapters=adapter,
        to=to,
        engine_python=PYTHONS,
        **options,  # type: ignore[arg-type]
    )
    return next(out.glob("*.gguf"))


def check(out: Path, engine: str = "llama.cpp", **options: object) -> CheckReport:
    settings: dict[str, object] = {"answers": 1, "engine_python": PYTHONS, **options}
    if settings.pop("examples", False):
        settings |= {"base": BASE, "adapter": ADAPTER}
    return remerge.check(out, engine, **settings)  # type: ignore[arg-type]


def failing(report: CheckReport) -> set[str]:
    assert report.passed == all(gate.passed for gate in report.gates)
    return {gate.name for gate in report.gates if not gate.passed}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``Q4_K_M`` and ``Q8_0`` of one merge, to be copied."""
    place = tmp_path_factory.mktemp("made")
    for kind in ("Q4_K_M", "Q8_0"):
        make(place / kind, f"gguf:{kind}")
    return place


def copied(made: Path, kind: str, place: Path) -> tuple[Path, Path]:
    shutil.copytree(made / kind, place / "out")
    return place / "out", next((place / "out").glob("*.gguf"))


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_0", "Q2_K"])
def test_right_ones_of_every_size_pass(tmp_path: Path, kind: str):
    make(tmp_path / "out", f"gguf:{kind}")
    report = check(tmp_path / "out")
    assert failing(report) == set(), report.gates
    assert (report.word, report.format) == ("served", kind)
    names = {gate.name for gate in report.gates}
    assert names >= {"tokenisation", "server"}
    # Among the errors of two bits these prompts cannot tell whether the adapter is there.
    assert ("adapter's share" in names) == (kind != "Q2_K")


@pytest.mark.parametrize("name", ["qwen3-tied", "mixtral", "odd"])
def test_random_models_pass_and_their_bases_fail(tmp_path: Path, name: str):
    """Models that hardly mind being quantised: the limit is theirs, not the format's."""
    base, adapter = llama_models.write(name, tmp_path, ENGINE)
    file = make(tmp_path / "out", "gguf:Q4_K_M", base, adapter)
    report = check(tmp_path / "out")
    assert failing(report) == set(), report.gates
    shutil.move(make(tmp_path / "none", "gguf:Q4_K_M", base, adapter, weights=[1e-9]), file)
    assert "adapter's share" in failing(check(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0"])
def test_permuted_queries_and_keys_fail(made: Path, tmp_path: Path, kind: str):
    out, file = copied(made, kind, tmp_path)
    before = file.read_bytes()
    subprocess.run([ENGINE, "-c", _PERMUTE, file], check=True)
    assert file.read_bytes() != before
    assert "KL divergence" in failing(check(out, examples=True))


def test_the_base_in_its_place_fails(made: Path, tmp_path: Path):
    out, file = copied(made, "Q4_K_M", tmp_path)
    shutil.move(make(tmp_path / "none", "gguf:Q4_K_M", weights=[1e-9]), file)
    report = check(out, examples=True)
    assert "adapter's share" in failing(report)
    # By its divergence it is hardly to be told: the adapter changes less than four bits do.
    assert report.share is not None and report.share.value == pytest.approx(0, abs=0.2)


def test_another_tokenizer_and_a_bos_left_out_fail(made: Path, tmp_path: Path):
    out, file = copied(made, "Q8_0", tmp_path)
    content = bytearray(file.read_bytes())
    key = b"tokenizer.ggml.add_bos_token"
    place = content.index(key) + len(key) + 4
    content[place] = 0
    file.write_bytes(content)
    assert failing(check(out, examples=True)) == {"tokenisation"}
    content[place] = 1
    # Two words of the vocabulary change places: "a" and "e", each after its length.
    first = content.index((1).to_bytes(8, "little") + b"a" + (1).to_bytes(8, "little")) + 8
    second = content.index((1).to_bytes(8, "little") + b"e" + (1).to_bytes(8, "little")) + 8
    content[first], content[second] = content[second], content[first]
    file.write_bytes(content)
    assert "tokenisation" in failing(check(out, examples=True))


def test_a_file_without_a_manifest(made: Path, tmp_path: Path):
    file = tmp_path / "some.gguf"
    shutil.copy(next((made / "Q8_0").glob("*.gguf")), file)
    with pytest.raises(UsageError, match="has no manifest"):
        check(file)
    report = check(file, base=BASE, adapter=ADAPTER)
    assert (failing(report), report.format) == (set(), "Q8_0")
    remerge.merge(BASE, ADAPTER, tmp_path / "hf")
    report = check(file, reference=tmp_path / "hf")
    assert (failing(report), report.share) == (set(), None)
    assert "KL divergence" in failing(check(file, reference=BASE))


def test_a_second_reader_of_the_same_file(made: Path):
    report = check(made / "Q4_K_M", engine="transformers", examples=True)
    assert (failing(report), report.word) == (set(), "scored")
