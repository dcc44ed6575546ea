"""Measure merges of several adapters against the merge of one, in one run on one machine.

    python benchmarks/several.py [--size 3g|8b|1g|64m] [--adapters 8] [--method METHOD ...]

Prints a table: seconds and peak memory of each, and both relative to the merge of one adapter. A
method is written as its name with options, e.g. "ties --density 0.5".
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

from remerge.artefacts.provenance import measured_of

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
METHODS = ["sum", "ties --density 0.5", "dare_linear --density 0.5", "svd", "core_space"]
RANK = 16


def main() -> None:
    options = parse()
    scratch = Path(tempfile.mkdtemp(prefix="remerge-several-", dir=options.dir))
    try:
        inputs = scratch / "inputs"
        adapters = write_inputs(options, inputs)
        one = cold([inputs / "base", adapters[0]], "sum", scratch)
        size = sum((a / "adapter_model.safetensors").stat().st_size for a in adapters)
        print(f"{options.size} base, {len(adapters)} adapters of rank {RANK}, {size / 1e6:.0f} MB")
        show("one adapter", one, one)
        for method in options.method:
            show(method, cold([inputs / "base", *adapters], method, scratch), one)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="3g", help="of the base, as in bench.py")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--dir", type=Path, default=None, help="scratch space on the disk to test")
    return parser.parse_args()


def write_inputs(options: argparse.Namespace, inputs: Path) -> list[Path]:
    """The base of bench.py, and adapters on all its linear layers that differ."""
    subprocess.run([PYTHON, str(HERE / "inputs.py"), options.size, str(inputs)], check=True)
    program = (
        "import sys, numpy as n; from pathlib import Path as P; import inputs as i\n"
        "size, rank, place = i.SIZES[sys.argv[1]], int(sys.argv[2]), P(sys.argv[3])\n"
        "values = n.random.default_rng(int(sys.argv[4])).standard_normal(i._BLOCK, dtype='f4')\n"
        "modules = {f'model.layers.{k}.{m}': s for k in range(size.layers)\n"
        "           for m, s in size.linears.items()}\n"
        "i.write_adapter(place, rank, modules, values)\n"
    )
    adapters = [inputs / f"adapter-{number}" for number in range(options.adapters)]
    for number, adapter in enumerate(adapters):
        words = [options.size, str(RANK), str(adapter), str(number)]
        subprocess.run([PYTHON, "-c", program, *words], check=True, cwd=HERE)
    subprocess.run(["sync", "-f", str(inputs)], check=True)
    return adapters


def cold(sources: list[Path], method: str, scratch: Path) -> measure.Measured:
    """One run from a cold cache, its output deleted."""
    out = scratch / "out"
    measure.cool(scratch / "inputs")
    subprocess.run([PYTHON, "-c", "import torch, transformers"], check=True)
    words = ["merge", "-q", *map(str, sources), "-o", str(out), "--method", *shlex.split(method)]
    try:
        measured = measure.run([PYTHON, "-m", "remerge", *words], out)
        print(f"  {method}: {measured_of(out).get('threads')} threads", file=sys.stderr)
        return measured
    finally:
        measure.remove(out)


def show(name: str, found: measure.Measured, one: measure.Measured) -> None:
    times, room = found.total / one.total, found.peak / one.peak
    processor = found.user + found.system
    print(
        f"{name:28} {found.total:7.1f} s ({times:4.1f}x)  {processor:7.1f} s of processor  "
        f"{found.peak / 1e6:6.0f} MB ({room:3.1f}x)",
        flush=True,
    )


if __name__ == "__main__":
    main()
