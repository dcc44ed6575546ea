"""``remerge advise``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remerge.cli.options import json_output, quiet
from remerge.cli.output import print_json, print_notes, print_table, size
from remerge.errors import UsageError
from remerge.sources.documents import as_list

if TYPE_CHECKING:
    from remerge.advice.advising import Advice
    from remerge.advice.costs import Costs

_INPUTS = ("base", "adapter")
# Asked on a terminal for what neither options nor a file say.
_QUESTIONS = {
    "variants": "How many variants of one base will be served at the same time?",
    "stage": "Which stage is it in: iterating, ab-testing or stable?",
    "requests_per_second": "How many requests a second, all variants together?",
    "latency_budget_ms": "Within how many milliseconds must the first token be there?",
    "further_fine_tuning": "Will it be fine-tuned further (yes or no)?",
    "quantize": "Which quantised format is wanted (fp8, gguf:Q4_K_M, ..., or none)?",
}


@click.command("advise", short_help="Merge or keep adapters? Say which, why and at what cost.")
@click.option("--variants", type=int, metavar="N", help="Adapters of one base served at a time.")
@click.option("--stage", metavar="STAGE", help="iterating, ab-testing or stable.")
@click.option(
    "--requests-per-second", type=float, metavar="R", help="Requests of all variants together."
)
@click.option(
    "--latency-budget-ms", type=float, metavar="L", help="Milliseconds until the first token."
)
@click.option(
    "--further-fine-tuning/--no-further-fine-tuning",
    default=None,
    help="Whether training will go on from this adapter.",
)
@click.option(
    "--quantize", metavar="FORMAT", help="A format that is wanted, as --to of merge takes it."
)
@click.option("--base", metavar="BASE", help="The base; with ADAPTER it is planned, for the costs.")
@click.option("--adapter", "adapters", metavar="ADAPTER", multiple=True, help="Repeatable.")
@click.option("--disk", metavar="SIZE", help="Room on disk for models, e.g. 500GB.")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of the GPUs that serve, e.g. 24GiB.")
@click.option(
    "--bench", metavar="FILE", help="What remerge bench -o wrote: its figures, and no general ones."
)
@click.option(
    "--facts",
    "file",
    metavar="FILE",
    help="A YAML file of the same facts, by the same names; options count more.",
)
@json_output
@quiet
@click.option("-v", "--verbose", is_flag=True, help="Print all that was taken for granted.")
def command(
    file: str | None,
    adapters: tuple[str, ...],
    base: str | None,
    bench: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Say whether to merge, to keep adapters, or both, for the facts given.

    On a terminal it asks for what is not given; Enter leaves a fact unknown. What is unknown speaks
    for nothing. The rules and their sources: docs/keep-or-merge.md.

    \b
    remerge advise --variants 1 --stage stable --requests-per-second 50
    remerge advise --variants 20 --base ./base --adapter ./adapter --disk 500GB
    remerge advise --facts facts.yaml --json
    """
    facts, inputs = _of_file(file)
    facts |= {name: value for name, value in options.items() if value is not None}
    if not (as_json or quiet) and sys.stdin.isatty() and sys.stdout.isatty():
        facts = _interview(facts, len(adapters or inputs["adapter"]))
    import remerge

    context = click.get_current_context()
    parent = context.parent
    group = parent.command if parent is not None else None
    known = group.list_commands(context) if isinstance(group, click.Group) else None
    told = remerge.advise(
        base=base or inputs["base"],
        adapters=adapters or inputs["adapter"],
        bench=bench,
        progress=not (quiet or as_json),
        **({} if known is None else {"commands": known}),
        **facts,
    )
    if as_json:
        print_json(told.document())
    elif not quiet:
        _print(told, verbose=verbose)


def _of_file(file: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts, and base and adapters, of a YAML file; raises `UsageError`."""
    inputs: dict[str, Any] = {"base": None, "adapter": ()}
    if file is None:
        return {}, inputs
    from remerge.advice.facts import read_facts
    from remerge.merging.recipes.document import read_document

    hint = "Write, e.g., variants: 3 and stage: stable; see docs/keep-or-merge.md."
    written = read_document(Path(file), "file of facts", hint)
    if "adapters" in written and "adapter" not in written:
        written["adapter"] = written.pop("adapters")
    facts: dict[str, Any] = {}
    for key, value in written.items():
        name = key.replace("-", "_")
        if name in facts or (name in _INPUTS and inputs[name]):
            raise UsageError(f"{file}: {name} is there twice.")
        if name in _INPUTS:
            inputs[name] = _paths(value, f"{file}: {name}", several=name == "adapter")
        else:
            facts[name] = value
    read_facts(facts, f"{file}: ", _INPUTS)
    return facts, inputs


def _paths(value: Any, name: str, *, several: bool) -> Any:
    if several:
        found = as_list(value) or [value]
        return tuple(_paths(one, name, several=False) for one in found)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is {value!r}, which names no directory.")
    return value


def _interview(facts: dict[str, Any], adapters: int) -> dict[str, Any]:
    """Ask for what is not known; an answer that makes no sense is asked for again."""
    from remerge.advice.facts import read_facts

    asked = dict(facts)
    for name, question in _QUESTIONS.items():
        if name in asked or (name == "variants" and adapters > 1):
            continue

        def read(text: str, name: str = name) -> Any:
            if not text.strip():
                return None
            try:
                value = _parsed(name, text.strip())
                read_facts({name: value})
            except UsageError as error:
                raise click.BadParameter(str(error)) from None
            return value

        asked[name] = click.prompt(question, default="", show_default=False, value_proc=read)
    return {name: value for name, value in asked.items() if value is not None}


def _parsed(name: str, text: str) -> Any:
    kinds: dict[str, Callable[[str], Any]] = {
        "variants": int,
        "requests_per_second": float,
        "latency_budget_ms": float,
    }
    if name == "further_fine_tuning":
        words = {"yes": True, "y": True, "no": False, "n": False}
        return words.get(text.lower(), text)
    try:
        return kinds.get(name, str)(text)
    except ValueError:
        return text


def _print(told: Advice, *, verbose: bool) -> None:
    print_notes(told.notes)
    click.echo(f"{told.decision}: {told.summary}")
    click.echo("why")
    for reason in told.decided.reasons:
        weight = "decides" if reason.hard else f"{reason.weight:g}"
        click.echo(f"  to {reason.pulls} ({weight}): {reason.text}")
        click.echo(f"    source: {reason.source}")
    click.echo("costs")
    print_table(_costs(told.costs))
    if told.changes:
        click.echo("what would change the answer")
        rows = [(flip.fact.replace("_", " "), flip.to, flip.decision) for flip in told.changes]
        print_table([(name, f"{to}: {decision}") for name, to, decision in rows])
    if verbose:
        click.echo("assumed")
        for line in told.assumed:
            click.echo(f"  {line}")
    elif told.assumed:
        click.echo(f"assumed: {told.assumed[0]}" + (" (-v: all)" if told.assumed[1:] else ""))
    click.echo(told.asset)
    click.echo("next")
    for line in (told.next, *told.after):
        click.echo(f"  {line}")


def _costs(costs: Costs) -> list[tuple[str, str]]:
    merge, keep = costs.merge, costs.keep
    low, high = keep.slower_by
    forecast = "not known" if merge.seconds is None else f"{merge.seconds:g} s to make (a forecast)"
    rows = [
        (
            "merge",
            f"{merge.copies} x {_size(merge.bytes_each)} = {_size(merge.disk_bytes)} on disk, "
            f"{_size(merge.gpu_bytes)} on the GPU",
        ),
        ("  time", f"{forecast}: {merge.seconds_from}"),
        (
            "keep",
            f"{_size(keep.base_bytes)} + {keep.adapters} x {_size(keep.adapter_bytes_each)} = "
            f"{_size(keep.disk_bytes)} on disk, {_size(keep.gpu_bytes)} on the GPU",
        ),
        ("  time", f"a token takes {low:.3g} to {high:.3g} times as long: {keep.slower_from}"),
    ]
    if keep.measure is not None:
        rows.append(("  measure", keep.measure))
    return rows


def _size(nbytes: int | None) -> str:
    return "?" if nbytes is None else size(nbytes)
