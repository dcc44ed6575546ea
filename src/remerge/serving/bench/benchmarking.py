"""`remerge.bench`: merged and the adapter on its base, in one engine, measured under load."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from remerge.engines import machine
from remerge.engines.servers.registry import program_of, server_of, usual_engine
from remerge.engines.servers.server import Adapter
from remerge.engines.servers.server import Settings as Sizes
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, UsageError
from remerge.serving.bench import figures
from remerge.serving.bench.hosts import Models, Starting, hosts_of
from remerge.serving.bench.measured import (
    Arm,
    ArmName,
    Benchmark,
    Gain,
    Measure,
    Sample,
    Settings,
)
from remerge.serving.bench.models import (
    Make,
    Sources,
    check_engine,
    differing_formats,
    find_sources,
    prepare,
    shape_of,
)
from remerge.serving.bench.prompts import Prompts, context_of, take_prompts
from remerge.serving.bench.rounds import Host, Report, Run, Work, run
from remerge.serving.bench.surroundings import machine_now, versions_of
from remerge.serving.sizing.asked import Asked as Wish
from remerge.serving.sizing.asked import Memory, Sized
from remerge.serving.sizing.figures import figures_of
from remerge.serving.sizing.reading import read_memory, read_model, size_of
from remerge.sources.references import Reference
from remerge.version import __version__

ENGINES = ("vllm", "llama.cpp", "transformers")
ARMS: tuple[ArmName, ...] = ("merged", "adapter", "idle")
_ONE_THREAD = (
    "With more than one thread an engine's threads wait for each other in a loop, which counts as "
    "processor time: where other programs run as well, --threads 1 tells more."
)


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and how. ``requests`` are those of one turn, None as many as take
    two seconds. ``seed`` decides the order of turns, None draws one."""

    base: Reference
    adapter: Reference
    output: Path | None
    engine: str | None
    arms: Sequence[str]
    concurrency: Sequence[int]
    prompts: Path | None
    max_tokens: int
    requests: int | None
    rounds: int
    threads: int | None
    dtype: str
    seed: int | None
    startup: float
    pythons: Mapping[str, str]
    make: Make
    note: Callable[[str], None]


def benchmark(asked: Asked, report: Report) -> Benchmark:
    """Prepare, run all rounds, and tell what they show.

    Raises `UsageError` for what cannot be asked, `Unsupported` for an adapter that the engine does
    not serve, and what merging or starting the engine raises. Nothing is left running or lying
    about.
    """
    _check(asked)
    sources = find_sources(asked.base, asked.adapter, asked.output)
    gguf = sources.output is not None and sources.output.kind == "gguf"
    engine = asked.engine or usual_engine(asked.pythons, is_gguf=gguf)
    check_engine(engine, sources)
    if engine == "llama.cpp" and asked.dtype != "auto":
        raise UsageError(
            "--dtype is for vllm and transformers: a GGUF file has its own types.",
            hint="Leave it out, or name an OUT of another type.",
        )
    arms: tuple[ArmName, ...] = tuple(arm for arm in ARMS if arm in asked.arms)
    program = _program(engine, asked.pythons)
    at_once(engine, asked.concurrency)
    longest = read_model(sources.base.path).shape.max_context
    prompts = take_prompts(asked.prompts, _tokenizer(sources), longest, asked.max_tokens)
    work = _work(asked, prompts)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    # The directory goes when servers have ended: they are started and stopped within.
    with tempfile.TemporaryDirectory(prefix="remerge-bench-") as name:
        place = Path(name)
        asked.note("preparing what each arm runs")
        models = prepare(engine, sources, place, asked.make, asked.pythons)
        together, starting = _started(engine, models, asked, prompts, place / "logs")
        hosts = hosts_of(engine, models, starting, arms)
        asked.note(f"running {work.rounds} rounds in {engine}")
        done = run(hosts, work, report, together=together)
    samples = tuple(map(figures.sample_of, done.segments))
    # In a container nvidia-smi knows processes by other numbers: what it tells is not all.
    on_gpu = starting.settings.gpu_fraction is not None or any(
        tree.gpu_memory for trees in done.trees.values() for tree in trees
    )
    measure: Measure = "wall" if on_gpu or not all(s.cpu_seconds for s in samples) else "cpu"
    gains = (*figures.gains(samples, measure), *_other(samples, measure))
    found = Benchmark(
        remerge=__version__,
        engine=engine,
        versions=versions_of(engine, program),
        machine=machine_now(load),
        settings=_settings(asked, work, prompts, starting.settings, done),
        model=shape_of(sources),
        arms=tuple(_arms(hosts, done)),
        measure=measure,
        headline="",
        points=figures.points(done.segments),
        gains=gains,
        samples=samples,
        notes=(),
    )
    differing = differing_formats(engine, sources)
    said = [*sources.notes, *([] if differing is None else [differing]), *prompts.notes]
    notes = _notes(found, done, said)
    return found.model_copy(update={"headline": _headline(found), "notes": tuple(notes)})


def _check(asked: Asked) -> None:
    if asked.engine is not None and asked.engine not in ENGINES:
        raise UsageError(
            f"{asked.engine!r} is no engine that is measured.", hint=f"Choose {', '.join(ENGINES)}."
        )
    unknown = [arm for arm in asked.arms if arm not in ARMS]
    if unknown or "merged" not in asked.arms or len(set(asked.arms)) < 2:
        raise UsageError(
            f"--arms {','.join(asked.arms)} is nothing to compare.",
            hint="Take merged with adapter or idle, or with both.",
        )
    counts = (*asked.concurrency, asked.max_tokens, asked.rounds, asked.requests or 1)
    if not asked.concurrency or min(counts) < 1:
        raise UsageError("Concurrency, tokens, requests and rounds are 1 at least.")
    if asked.max_tokens < 2:
        raise UsageError("--max-tokens 1 has no time between tokens.", hint="Give at least 2.")


def _program(engine: str, pythons: Mapping[str, str]) -> Path:
    return program_of(server_of(engine), pythons)


def _tokenizer(sources: Sources) -> Any:
    output = sources.output
    merged = output is not None and output.kind == "checkpoint"
    return open_tokenizer(output.place if output is not None and merged else sources.base.path)


def _work(asked: Asked, prompts: Prompts) -> Work:
    levels = tuple(sorted(set(asked.concurrency)))
    return Work(
        prompts=prompts.tokens,
        concurrency=levels,
        requests=asked.requests,
        max_tokens=asked.max_tokens,
        rounds=asked.rounds,
        seed=secrets.randbits(32) if asked.seed is None else asked.seed,
    )


def _device(engine: str) -> str:
    if engine != "transformers" or not machine.gpus():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def at_once(engine: str, concurrency: Sequence[int]) -> int:
    """How many sequences servers are to hold; raises `UsageError` for more than they can."""
    wanted = max(concurrency)
    if engine == "transformers":
        # It serves one, and is measured in batches.
        return 1
    most = figures_of(engine, gpu=bool(machine.gpus())).most_sequences
    if wanted > most:
        raise UsageError(
            f"{engine} computes at most {most} sequences at once here, not {wanted}.",
            hint=f"Ask for --concurrency {most} or less.",
        )
    return wanted


def _started(
    engine: str, models: Models, asked: Asked, prompts: Prompts, logs: Path
) -> tuple[bool, Starting]:
    """How servers are started, with sizes that hold the load and no more, and whether there is
    memory for both at once. Raises `UsageError` or `BadInput` where there is none for one."""
    device = _device(engine)
    context = context_of(prompts.lengths[1], asked.max_tokens)
    sequences = at_once(engine, asked.concurrency)
    batch = max(asked.concurrency) // sequences
    wish = Wish(context=context, sequences=sequences, dtype=asked.dtype)
    adapter = Adapter(models.adapter.name, models.adapter, models.rank)
    whole = read_memory(gpu=engine == "vllm" or device == "cuda")

    def sized(memory: Memory) -> list[Sized]:
        return [
            size_of(models.merged, engine, wish, memory),
            size_of(models.base, engine, wish, memory, adapters=(adapter,)),
        ]

    def fit(found: Sequence[Sized], memory: Memory) -> bool:
        parts = [one.parts for one in found]
        return all(one.total + (batch - 1) * one.cache <= memory.given for one in parts)

    half = replace(whole, given=whole.given // 2)
    found, together = list[Sized](), False
    # What does not fit into half of it may fit into the whole.
    with suppress(UsageError, BadInput):
        found = sized(half)
        together = fit(found, half)
    if not together:
        found = sized(whole)
        if not fit(found, whole):
            raise BadInput(
                f"{max(asked.concurrency)} requests at once do not fit into the memory that is "
                f"there ({whole.source}).",
                hint="Lower --concurrency or --max-tokens.",
            )
    # What fits with the adapter is what both are given.
    settings = found[1].settings
    if settings.gpu_fraction is None:
        settings = replace(settings, threads=asked.threads or machine.cores())
    cache = max(one.settings.cache_bytes for one in found)
    settings = replace(settings, cache_bytes=cache)
    return together, Starting(settings, logs, asked.pythons, device, asked.startup)


def _other(samples: Sequence[Sample], measure: Measure) -> tuple[Gain, ...]:
    """The gains by the other clock."""
    return figures.gains(samples, "wall" if measure == "cpu" else "cpu")


def _settings(asked: Asked, work: Work, prompts: Prompts, sizes: Sizes, done: Run) -> Settings:
    return Settings(
        concurrency=work.concurrency,
        requests=tuple(done.requests[level] for level in work.concurrency),
        max_tokens=work.max_tokens,
        prompts=len(prompts.tokens),
        prompt_tokens=prompts.lengths,
        prompts_from=prompts.source,
        rounds=work.rounds,
        threads=sizes.threads or machine.cores(),
        dtype=asked.dtype,
        context=sizes.context,
        servers=done.servers,
        seed=work.seed,
    )


def _arms(hosts: Sequence[Host], done: Run) -> Iterator[Arm]:
    what = {
        "merged": "the merged model",
        "adapter": "the base with the adapter, unmerged",
        "idle": "the base alone, where the adapter is loaded",
    }
    for index, host in enumerate(hosts):
        trees = done.trees[index]
        memory = [tree.memory for tree in trees if tree.memory is not None]
        gpu = [tree.gpu_memory for tree in trees if tree.gpu_memory is not None]
        for arm in host.arms:
            yield Arm(
                name=arm,
                what=what[arm],
                memory=max(memory, default=None),
                gpu_memory=max(gpu, default=None),
                start_seconds=round(median(done.starts[index]), 2),
            )


def _headline(found: Benchmark) -> str:
    over = "adapter" if any(arm.name == "adapter" for arm in found.arms) else "idle"
    gain = found.gain(over, found.measure)
    if gain is not None:
        return gain.says
    return "no figure: requests failed, and what failed is not left out of an average"


def _notes(found: Benchmark, done: Run, said: Sequence[str]) -> Iterator[str]:
    for point in found.points:
        if point.failed:
            fault = next(
                answer.fault
                for segment in done.segments
                if (segment.arm, segment.concurrency) == (point.arm, point.concurrency)
                for answer in segment.answers
                if answer.fault is not None
            )
            yield (
                f"{point.failed} requests of {point.arm} failed at {point.concurrency} at once, "
                f"and its figures are void: {fault.rstrip('.')}."
            )
    yield from said
    if found.measure == "cpu":
        yield (
            "Measured in processor time, as the clock on the wall also counts what other programs "
            "do; it is shown beside."
        )
        if found.settings.threads > 1:
            yield _ONE_THREAD
    if found.engine == "transformers":
        yield "transformers answers in batches: so many requests at once are one batch."
    if found.settings.servers == "in turn":
        yield "Memory has no room for both: servers ran one at a time, started for each round."
    if found.settings.servers == "kept":
        yield (
            "Servers take long to start and were started once: what differs between one start and "
            "the next is not in the intervals."
        )
