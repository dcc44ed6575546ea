"""What a benchmark found: as a table, as JSON, and as the section of docs/benchmarks.md."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measure import Measured

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass(frozen=True)
class Row:
    """One contestant and its runs; none when it was skipped, and then why."""

    name: str
    runs: tuple[Measured, ...] = ()
    note: str = ""

    def middle(self, of: str) -> float:
        return median(getattr(run, of) for run in self.runs)

    def cells(self) -> list[str]:
        if not self.runs:
            return [self.name, "-", "-", "-", "-", "-"]
        seconds = [f"{self.middle(of):.2f}" for of in ("total", "wall", "user", "system")]
        return [self.name, *seconds, _bytes(self.middle("peak"))]


@dataclass(frozen=True)
class Results:
    """Everything that one run of the benchmark measured."""

    when: str
    machine: dict[str, Any]
    versions: dict[str, str]
    base: dict[str, Any]
    repeat: int
    cache: str
    rows: list[Row]
    start_up: list[Row]
    rates: dict[str, float]
    peaks: dict[str, int] = field(default_factory=dict)


COLUMNS = ["", "to disk, s", "exit, s", "user, s", "system, s", "peak memory"]


def print_table(results: Results) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in (("Merging", results.rows), ("Start-up", results.start_up)):
        table = Table(*COLUMNS, title=title)
        for row in rows:
            table.add_row(*row.cells())
        console.print(table)
    console.print("\n".join(sentences(results)))


def write(results: Results, docs: Path) -> None:
    """Store the numbers, and put them between the markers of the page."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    page = docs / "benchmarks.md"
    text = page.read_text() if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(results)}{END}{after}")


def markdown(results: Results) -> str:
    machine, base = results.machine, results.base
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        f"{results.when}: {machine['processor']}, {machine['cores']} cores, "
        f"{_bytes(machine['memory'])} of RAM, {machine['file_system']}, Linux {machine['kernel']}; "
        f"{versions}. Base: {base['name']}, {_bytes(base['bytes'])} of bfloat16 in "
        f"{base['shards']} shards. Medians of {results.repeat} interleaved runs. "
        f"Cold cache by {results.cache}.",
        "",
        *_markdown_table(results.rows),
        "",
        *(f"- {sentence}" for sentence in sentences(results)),
        "",
        "Start-up, warm:",
        "",
        *_markdown_table(results.start_up),
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(rows: list[Row]) -> list[str]:
    ruler = ["---"] + ["---:"] * (len(COLUMNS) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ruler, *(r.cells() for r in rows))]


def sentences(results: Results) -> list[str]:
    """What the table does not say: rates reached, memory against size, what was left out."""
    rates = results.rates
    found = [
        f"Limits of the machine: {rates['float64_gflops']:.0f} GFLOP/s of float64 matrix product "
        f"on two threads, SHA-256 at {rates['sha256_gb_s']:.2f} GB/s a core."
    ]
    if "rank64_gflops" in rates:
        share = rates["rank64_gflops"] / rates["float64_gflops"]
        found.append(
            f"Rank 64 needs 2 x 64 operations for each element: {rates['rank64_gflops']:.1f} "
            f"GFLOP/s over the whole merge, {share:.0%} of that product's rate."
        )
    if results.peaks:
        peaks = ", ".join(f"{_bytes(peak)} for {name}" for name, peak in results.peaks.items())
        found.append(f"Peak memory against the base's size (rank 16): {peaks}.")
    found += [f"{row.name}: {row.note}" for row in results.rows if row.note]
    return found


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
