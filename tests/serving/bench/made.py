"""A benchmark of a simulated engine, whole."""

from __future__ import annotations

from remerge.serving.bench import figures
from remerge.serving.bench.measured import Arm, Benchmark, Machine, Settings
from remerge.serving.bench.rounds import Run
from tests.serving.bench import simulated


def benchmark(done: Run | None = None) -> Benchmark:
    done = done or simulated.simulated(simulated.Machine(1), rounds=8)
    samples = tuple(map(figures.sample_of, done.segments))
    gains = (*figures.gains(samples, "cpu"), *figures.gains(samples, "wall"))
    return Benchmark(
        remerge="1",
        engine="llama.cpp",
        versions={"xllamacpp": "1"},
        machine=Machine(
            processor="a processor",
            cores=2,
            memory=8 * 10**9,
            gpus=(),
            instructions=("avx2",),
            load=0.1,
        ),
        settings=Settings(
            concurrency=(1, 4),
            requests=(8, 8),
            max_tokens=16,
            prompts=2,
            prompt_tokens=(1, 2),
            prompts_from="built in",
            rounds=8,
            threads=1,
            dtype="auto",
            context=20,
            servers=done.servers,
            seed=1,
        ),
        model={"model_type": "llama"},
        arms=(
            Arm(name="merged", what="merged", memory=10, gpu_memory=None, start_seconds=1.0),
            Arm(name="adapter", what="adapter", memory=20, gpu_memory=None, start_seconds=1.0),
        ),
        measure="cpu",
        headline=gains[0].says if gains else "no figure",
        points=figures.points(done.segments),
        gains=gains,
        samples=samples,
        notes=("A note.",),
    )
