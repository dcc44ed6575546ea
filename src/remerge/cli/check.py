"""``remerge check``."""

from __future__ import annotations

import click

from remerge.cli.options import engine_python, json_output, pythons, quiet, threads, verbose
from remerge.cli.output import counter, print_json


@click.command("check")
@click.argument("output", metavar="OUT")
@click.option(
    "--engine",
    required=True,
    help="transformers, llama.cpp, vllm, onnxruntime, tgi or tensorrt-llm.",
)
@click.option("--prompts", metavar="FILE", help="Texts, one a line, or JSON lines.")
@click.option("--reference", metavar="DIR", help="Compare with this checkpoint instead.")
@click.option("--base", help="Where the base lies, if it moved.")
@click.option(
    "--adapter", multiple=True, help="Where the adapter lies, if it moved; all of several."
)
@click.option("--format", "form", help="The format whose limits hold; found out by default.")
@click.option(
    "--max-prompts", type=click.IntRange(1, 10_000), default=8, show_default=True, metavar="N"
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2, 100_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Of each prompt.",
)
@click.option(
    "--answers",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Prompts that are answered as well; shown, never judged.",
)
@engine_python
@threads
@json_output
@quiet
@verbose
def command(
    output: str,
    engine: str,
    prompts: str | None,
    reference: str | None,
    base: str | None,
    adapter: tuple[str, ...],
    form: str | None,
    max_prompts: int,
    max_tokens: int,
    answers: int,
    engine_python: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Load OUT in a real ENGINE and compare it with the merge in float32.

    The same prompts are scored by both; tokenisation, probabilities and the adapter's share must
    hold the format's limits. Exit code 5: they do not.
    """
    import remerge
    from remerge.cli.check_report import print_report
    from remerge.validation.check import document

    report = remerge.check(
        output,
        engine,
        base=base,
        adapter=adapter or None,
        reference=reference,
        prompts=prompts,
        form=form,
        max_prompts=max_prompts,
        max_tokens=max_tokens,
        answers=answers,
        engine_python=pythons(engine_python),
        threads=threads,
        report=counter("scored", quiet=quiet or as_json),
    )
    if as_json:
        print_json(document(report))
    elif not quiet:
        print_report(report, verbose=verbose)
    if not report.passed:
        raise click.exceptions.Exit(5)
