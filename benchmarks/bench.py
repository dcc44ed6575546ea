"""Measure merging against copying and against PEFT, in one run on one machine.

    python benchmarks/bench.py [--size 3g|8b|1g|64m] [--repeat 3] [--dir SCRATCH] [--no-peft]

Prints a table and rewrites docs/benchmarks.json and the results in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import measure
import report
from measure import Measured
from report import Results, Row

HERE = Path(__file__).resolve().parent
SMALLER = {"64m": "16m", "1g": "64m", "3g": "1g", "8b": "3g"}
PYTHON = sys.executable


@dataclass(frozen=True)
class Contestant:
    """A name and the command that turns the inputs into an output directory."""

    name: str
    command: Callable[[Path, Path], list[str]]


def remerge(adapter: str) -> Callable[[Path, Path], list[str]]:
    return lambda inputs, out: [
        *(PYTHON, "-m", "remerge", "merge", "-q"),
        *(str(inputs / "base"), str(inputs / adapter), "-o", str(out)),
    ]


def peft(adapter: str) -> Callable[[Path, Path], list[str]]:
    return lambda inputs, out: [
        *(PYTHON, str(HERE / "peft_merge.py")),
        *(str(inputs / "base"), str(inputs / adapter), str(out)),
    ]


def copy(inputs: Path, out: Path) -> list[str]:
    return ["cp", "-r", str(inputs / "base"), str(out)]


RANK16, RANK64 = "remerge, rank 16", "remerge, rank 64"
CONTESTANTS = [
    Contestant("cp -r", copy),
    Contestant("remerge, floor (rank 1 on k_proj)", remerge("lora-floor")),
    Contestant(RANK16, remerge("lora-16")),
    Contestant(RANK64, remerge("lora-64")),
]
PEFT = Contestant("PEFT, rank 16", peft("lora-16"))


def main() -> None:
    options = parse()
    scratch = Path(tempfile.mkdtemp(prefix="remerge-bench-", dir=options.dir))
    try:
        results = bench(options, scratch)
    except measure.Failed as failure:
        sys.exit(f"A contestant failed: {failure}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report.print_table(results)
    report.write(results, options.docs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SMALLER), default="3g", help="of the base")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contestant")
    parser.add_argument("--dir", type=Path, default=None, help="scratch space on the disk to test")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where to write")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT out (time, memory)")
    return parser.parse_args()


def bench(options: argparse.Namespace, scratch: Path) -> Results:
    sizes = facts()
    size, small = sizes[options.size], sizes[SMALLER[options.size]]
    need = 2 * size["bytes"] + size["adapter_bytes"]
    free = shutil.disk_usage(scratch).free
    if free < 1.05 * need:
        sys.exit(f"{scratch} has {free / 1e9:.1f} GB free; {need / 1e9:.1f} GB are needed.")
    rates = json.loads(subprocess.check_output([PYTHON, str(HERE / "machine.py")]))
    peaks = {f"{small['bytes'] / 1e9:.2f} GB": smaller_peak(SMALLER[options.size], scratch)}
    inputs = write_inputs(options.size, scratch)
    contestants, skipped = choose(options, size["bytes"])
    runs: dict[str, list[Measured]] = {contestant.name: [] for contestant in contestants}
    cache = ""
    for turn in range(options.repeat):
        # Another one starts each turn, so that no one always follows the same neighbour.
        first = turn % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            cache, measured = compete(contestant, inputs, scratch / "out")
            runs[contestant.name].append(measured)
            print(f"{contestant.name}: {measured.total:.2f} s", file=sys.stderr, flush=True)
    rows = [Row(name, tuple(found)) for name, found in runs.items()] + skipped
    by_name = {row.name: row for row in rows}
    seconds = by_name[RANK64].middle("total")
    rates["rank64_gflops"] = 2 * 64 * size["targeted"] / seconds / 1e9
    peaks[f"{size['bytes'] / 1e9:.2f} GB"] = int(by_name[RANK16].middle("peak"))
    return Results(
        when=time.strftime("%Y-%m-%d"),
        machine=machine(scratch),
        versions=versions(),
        base={"name": options.size, "bytes": size["bytes"], "shards": size["shards"]},
        repeat=options.repeat,
        cache=cache,
        rows=rows,
        start_up=start_up(),
        rates=rates,
        peaks=peaks,
    )


def facts() -> dict[str, dict[str, int]]:
    """The sizes' numbers; asked from a child because numpy would weigh on every peak."""
    program = (
        "import json, inputs as i; print(json.dumps({name: {'bytes': s.base_bytes, "
        "'targeted': s.targeted, 'shards': i.SHARDS, "
        "'adapter_bytes': sum(map(s.adapter_bytes, i.RANKS))} for name, s in i.SIZES.items()}))"
    )
    return json.loads(subprocess.check_output([PYTHON, "-c", program], cwd=HERE))


def write_inputs(size: str, scratch: Path) -> Path:
    inputs = scratch / f"inputs-{size}"
    subprocess.run([PYTHON, str(HERE / "inputs.py"), size, str(inputs)], check=True)
    subprocess.run(["sync", "-f", str(inputs)], check=True)
    return inputs


def smaller_peak(size: str, scratch: Path) -> int:
    """Peak memory of the same merge on a smaller base, which is deleted again."""
    inputs = write_inputs(size, scratch)
    _, measured = compete(Contestant("", remerge("lora-16")), inputs, scratch / "out")
    measure.remove(inputs)
    return measured.peak


def choose(options: argparse.Namespace, base: int) -> tuple[list[Contestant], list[Row]]:
    """Who takes part; PEFT needs the whole model in memory, and says so when it cannot."""
    if options.no_peft:
        return CONTESTANTS, [Row(PEFT.name, note="left out (--no-peft).")]
    available = measure.available_memory()
    if available < 1.3 * base + 2e9:
        note = f"left out: it needs the model in memory, and {available / 1e9:.0f} GB are free."
        return CONTESTANTS, [Row(PEFT.name, note=note)]
    return [*CONTESTANTS, PEFT], []


def compete(contestant: Contestant, inputs: Path, out: Path) -> tuple[str, Measured]:
    """One cold run, its output deleted; also how the cache was emptied."""
    cache = measure.cool(inputs)
    # The programs are warm, the inputs cold: reading torch's libraries is not what is compared.
    subprocess.run([PYTHON, "-c", "import torch, transformers"], check=True)
    try:
        return cache, measure.run(contestant.command(inputs, out), out)
    finally:
        measure.remove(out)


def start_up(repeat: int = 5) -> list[Row]:
    """What starting costs before any work, from a warm cache."""
    commands = {
        "remerge --version": [PYTHON, "-m", "remerge", "--version"],
        "remerge merge --help": [PYTHON, "-m", "remerge", "merge", "--help"],
        "python -c 'import torch'": [PYTHON, "-c", "import torch"],
    }
    rows: list[Row] = []
    for name, command in commands.items():
        measure.run(command)
        rows.append(Row(name, tuple(measure.run(command) for _ in range(repeat))))
    return rows


def machine(scratch: Path) -> dict[str, object]:
    return {
        "processor": measure.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": measure.file_system(scratch),
        "kernel": os.uname().release,
    }


def versions() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    for name in ("remerge", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from the source tree
    return found


if __name__ == "__main__":
    main()
