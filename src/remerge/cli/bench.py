"""``remerge bench``."""

from __future__ import annotations

from pathlib import Path

import click

from remerge.cli.options import engine_python, json_output, pythons, quiet
from remerge.cli.output import counter, print_json
from remerge.errors import UsageError


@click.command("bench", short_help="Measure merged against the adapter on its base, under load.")
@click.argument("base", metavar="BASE")
@click.argument("adapter", metavar="ADAPTER")
@click.argument("output", metavar="[OUT]", required=False)
@click.option("--engine", help="vllm, llama.cpp or transformers; by default what would serve OUT.")
@click.option(
    "--arms",
    default="merged,adapter",
    show_default=True,
    metavar="ARMS",
    help="Also idle: the base alone, in the engine that has the adapter loaded.",
)
@click.option(
    "--concurrency",
    default="1,2,4,8",
    show_default=True,
    metavar="N,...",
    help="Requests at once, one measurement each.",
)
@click.option("--prompts", metavar="FILE", help="JSON lines as compare takes them, or a text each.")
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens generated for each request, by both alike.",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    metavar="N",
    help="For one measurement; by default as many as take two seconds, and at least 8.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Rounds; fewer than 6 give no interval.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Of the engine; all cores by default.")
@click.option("--dtype", default="auto", show_default=True, help="As vLLM or transformers name it.")
@click.option("--seed", type=int, metavar="N", help="Of the order of turns; drawn by default.")
@click.option(
    "--startup-timeout",
    type=click.FloatRange(1),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="How long a server may take to start.",
)
@click.option(
    "-o",
    "--output",
    "place",
    metavar="PLACE",
    help="Write bench.json and the plot bench.svg to a directory, or to FILE.json and FILE.svg.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@engine_python
@json_output
@quiet
def command(
    base: str,
    adapter: str,
    output: str | None,
    engine: str | None,
    arms: str,
    concurrency: str,
    prompts: str | None,
    max_tokens: int,
    requests: int | None,
    repeats: int,
    threads: int | None,
    dtype: str,
    seed: int | None,
    startup_timeout: float,
    place: str | None,
    overwrite: bool,
    engine_python: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Run OUT and ADAPTER on BASE in the same engine, under the same load, and say how much faster
    merged is, with its interval.

    Without OUT the merge is made for the benchmark, and deleted. Exit code 75: requests failed, and
    figures are missing.

    \b
    remerge bench ./base ./adapter ./merged
    remerge bench ./base ./adapter model-Q4_K_M.gguf --prompts prompts.jsonl -o results
    remerge bench ./base ./adapter --engine llama.cpp --arms merged,adapter,idle --repeats 12
    """
    levels = _numbers(concurrency)
    own = pythons(engine_python)
    import remerge
    from remerge.cli.bench_report import print_benchmark
    from remerge.serving.bench.writing import check_place, write

    def note(text: str) -> None:
        if not (quiet or as_json):
            click.echo(text, err=True)

    files = None if place is None else check_place(Path(place), overwrite=overwrite)
    found = remerge.bench(
        base,
        adapter,
        output,
        engine=engine,
        arms=[arm.strip() for arm in arms.split(",")],
        concurrency=levels,
        prompts=prompts,
        max_tokens=max_tokens,
        requests=requests,
        repeats=repeats,
        threads=threads,
        dtype=dtype,
        seed=seed,
        startup_timeout=startup_timeout,
        engine_python=own,
        report=counter("measured", quiet=quiet or as_json),
        note=note,
    )
    written = () if files is None else write(found, files)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif not quiet:
        print_benchmark(found)
        for path in written:
            click.echo(f"written to {path}")
    if not found.whole:
        raise click.exceptions.Exit(75)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--concurrency {text!r} is no list of numbers.", hint="Write 1,2,4,8."
        ) from None
