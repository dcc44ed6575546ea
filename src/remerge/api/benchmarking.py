"""Measuring: merged against the adapter on its base, in a serving engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remerge.api.making import export
from remerge.api.options import Source, silent, unheard
from remerge.artefacts.making import Report
from remerge.engines.calling import Note
from remerge.sources.references import resolve

if TYPE_CHECKING:
    from remerge.serving.bench.measured import Benchmark


def bench(
    base: Source,
    adapter: Source,
    output: Source | None = None,
    *,
    engine: str | None = None,
    arms: Sequence[str] = ("merged", "adapter"),
    concurrency: Sequence[int] = (1, 2, 4, 8),
    prompts: Source | None = None,
    max_tokens: int = 64,
    requests: int | None = None,
    repeats: int = 8,
    threads: int | None = None,
    dtype: str = "auto",
    seed: int | None = None,
    startup_timeout: float = 900.0,
    engine_python: Mapping[str, str] | None = None,
    report: Report = silent,
    note: Note = unheard,
) -> Benchmark:
    """Measure ``output`` against the adapter on its base, in the same engine (docs/bench.md).

    ``engine``: vllm, llama.cpp or transformers, by default that which would serve ``output``.
    Without ``output`` the merge is made for the benchmark and deleted. ``arms`` are merged, adapter
    and idle (the base where the adapter is loaded); each does the same work in each of ``repeats``
    rounds: ``requests`` (as many as take two seconds) of ``max_tokens`` tokens at every
    ``concurrency``. ``gains`` of the result have the ratios with their intervals, ``headline`` says
    it in a sentence. ``report`` is told turns done and turns in all, ``note`` what is being done.
    """
    # It imports transformers, which takes seconds.
    from remerge.serving.bench import benchmarking

    own = dict(engine_python or {})

    def make(source: Path, adapters: Sequence[Path], to: str, place: Path) -> None:
        export(source, place, adapters=adapters, to=to, threads=threads, engine_python=own)

    asked = benchmarking.Asked(
        base=resolve(base, "base"),
        adapter=resolve(adapter, "adapter"),
        output=None if output is None else Path(output),
        engine=engine,
        arms=tuple(arms),
        concurrency=tuple(concurrency),
        prompts=None if prompts is None else Path(prompts),
        max_tokens=max_tokens,
        requests=requests,
        rounds=repeats,
        threads=threads,
        dtype=dtype,
        seed=seed,
        startup=startup_timeout,
        pythons=own,
        make=make,
        note=note,
    )
    return benchmarking.benchmark(asked, report)
