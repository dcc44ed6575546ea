"""``remerge formats``."""

from __future__ import annotations

from pathlib import Path

import click

from remerge.cli.options import engine_python, json_output, pythons, quiet, threads
from remerge.cli.output import print_columns, print_json, print_notes, progress, size


@click.command("formats", short_help="Compare formats of one model: size, loss, score, time.")
@click.argument("base", metavar="BASE")
@click.argument("adapters", metavar="[ADAPTER]...", nargs=-1)
@click.option(
    "--to",
    "forms",
    multiple=True,
    metavar="FORM",
    help="As for merge, without engine options; repeatable. By default what the engines that are "
    "installed can make.",
)
@click.option("--prompts", metavar="FILE", help="Texts to compare on: one a line, or JSON lines.")
@click.option(
    "--eval",
    "evaluation",
    metavar="FILE",
    help='JSON lines {"prompt", "expected"}: the share of right answers is shown as well.',
)
@click.option("--questions", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@click.option("--keep", metavar="DIR", help="Keep what was made, in a new directory.")
@click.option("--max-prompts", type=click.IntRange(1), default=8, show_default=True, metavar="N")
@click.option("--max-tokens", type=click.IntRange(2), default=128, show_default=True, metavar="N")
@engine_python
@threads
@json_output
@quiet
def command(
    base: str,
    adapters: tuple[str, ...],
    forms: tuple[str, ...],
    prompts: str | None,
    evaluation: str | None,
    questions: int,
    keep: str | None,
    max_prompts: int,
    max_tokens: int,
    engine_python: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make several formats of BASE with its ADAPTERs, and show side by side what each costs.

    Every format is made, loaded in the engine that reads it, scored against the merge in float32
    on the same prompts, and deleted unless --keep says otherwise.

    \b
    remerge formats ./base ./adapter --to fp8 --to gguf:Q4_K_M --to gguf:Q8_0 --eval test.jsonl
    """
    import remerge
    from remerge.validation.formats import FormatRow, document

    with progress("comparing", quiet=quiet or as_json) as report:
        table = remerge.formats(
            base,
            adapters,
            forms,
            prompts=prompts,
            evaluation=evaluation,
            questions=questions,
            keep=None if keep is None else Path(keep),
            max_prompts=max_prompts,
            max_tokens=max_tokens,
            engine_python=pythons(engine_python),
            threads=threads,
            report=report,
        )
    if as_json:
        print_json(document(table))
        return
    print_notes(table.notes)
    head = ["format", "size", "bits/weight", "KL, nats", "perplexity", "top-1", "made in", "by"]
    asked = table.questions > 0
    if asked:
        head.insert(6, "right")

    def cells(row: FormatRow) -> list[str]:
        found = row.comparison
        scored = (
            ["-"] * 3
            if found is None
            else [f"{found.kl_mean:.1e}", f"{found.perplexity:.3f}", f"{found.top1:.1%}"]
        )
        right = ["-" if row.score is None else f"{row.score:.0%}"] if asked else []
        bits = f"{row.bits_per_weight:.2f}" if row.nbytes else "-"
        made = f"{row.seconds:.1f} s" if row.nbytes else "-"
        return [
            row.form,
            size(row.nbytes) if row.nbytes else "-",
            bits,
            *scored,
            *right,
            made,
            row.engine or "-",
        ]

    print_columns([head, *(cells(row) for row in table.rows)])
    own = f"{table.reference}: perplexity {table.perplexity:.3f} over {table.positions} positions"
    if table.score is not None:
        own += f", {table.score:.0%} of {table.questions} answers right"
    click.echo(f"compared with {own}")
    for row in table.rows:
        if row.failure is not None:
            click.echo(f"  {row.form}: {row.failure}")
