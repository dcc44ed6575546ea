"""``remerge compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remerge.cli.gate_options import gate_options, take_gate
from remerge.cli.options import engine_python, json_output, pythons, quiet, threads, verbose
from remerge.cli.output import counter, print_json


@click.command(
    "compare", short_help="Compare the merged model with the adapter on its base, and judge."
)
@click.argument("inputs", metavar="[BASE ADAPTER...] OUT", nargs=-1, required=True)
@gate_options
@click.option("--recipe", metavar="FILE", help="Take inputs, method and gate from a recipe.")
@click.option(
    "--bisect", is_flag=True, help="When the gate fails, find where it hurts and what would pass."
)
@click.option(
    "--engine", help="Who runs OUT: transformers, llama.cpp, vllm or onnxruntime, by its kind."
)
@click.option("--format", "form", help="The format whose limits hold; found out by default.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of transformers' arithmetic; float32 shows what the weights do, and nothing else.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for transformers.")
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    metavar="N",
    help="Of a prompt to score, or of a piece of --text.",
)
@click.option("--answer-tokens", type=click.IntRange(1), metavar="N", help="The most of an answer.")
@click.option("--no-chat", is_flag=True, help="Give prompts as they stand, without chat template.")
@click.option(
    "--endpoint",
    metavar="[SIDE=]URL",
    multiple=True,
    help="Ask an OpenAI-compatible server instead of loading: that serves OUT, or with adapter= "
    "the adapter on its base; SIDE=MODEL@URL names one of its models.",
)
@click.option(
    "--lm-eval",
    metavar="TASKS",
    multiple=True,
    help="Also lm-eval's tasks, names or YAML files with commas between.",
)
@click.option("--lm-eval-include", metavar="DIR", help="Where further tasks of lm-eval lie.")
@click.option("--no-record", is_flag=True, help="Write no test result beside OUT.")
@click.option("--no-cache", is_flag=True, help="Ask everything anew, and remember nothing.")
@engine_python
@threads
@json_output
@quiet
@verbose
def command(
    inputs: tuple[str, ...],
    recipe: str | None,
    bisect: bool,
    no_chat: bool,
    no_record: bool,
    no_cache: bool,
    lm_eval: tuple[str, ...],
    lm_eval_include: str | None,
    engine_python: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Run ADAPTER on BASE through PEFT, and OUT in its own engine, on the same questions; compare
    weights, probabilities and scores, and say whether OUT may be deployed.

    Without BASE and ADAPTER, OUT's manifest names them. Exit code 5: the gate failed.

    \b
    remerge compare ./base ./adapter ./merged --eval test.jsonl
    remerge compare ./base ./a ./b ./merged --eval a=a.jsonl --eval b=b.jsonl --text wiki.txt
    remerge compare ./base ./adapter model-Q4_K_M.gguf --max-kl 0.05 --bisect
    """
    import remerge
    from remerge.cli.compare_report import document, print_comparison

    written = None if recipe is None else remerge.read_recipe(recipe)
    gate = take_gate(options, None if written is None else written.gate)
    *sources, output = inputs
    base, adapters = (sources[0], sources[1:]) if len(sources) > 1 else (None, sources)
    if written is not None:
        base, adapters = base or written.base, adapters or list(written.adapters)
        options["recipe_options"] = written.options
    report = remerge.compare(
        base,
        adapters,
        output,
        gate=gate,
        bisect=bisect,
        chat=not no_chat,
        lm_eval=tuple(name for text in lm_eval for name in text.split(",") if name),
        lm_eval_include=None if lm_eval_include is None else Path(lm_eval_include),
        record=not no_record,
        remember=not no_cache,
        engine_python=pythons(engine_python),
        report=counter("compared", quiet=quiet or as_json),
        **options,
    )
    if as_json:
        print_json(document(report))
    elif not quiet:
        print_comparison(report, verbose=verbose)
    if not report.passed:
        raise click.exceptions.Exit(5)
