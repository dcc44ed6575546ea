"""``remerge promote``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remerge.cli.gate_options import gate_options, take_gate
from remerge.cli.options import (
    device,
    engine_python,
    json_output,
    pythons,
    quiet,
    store,
    threads,
    verbose,
)
from remerge.cli.output import counter, error_document, print_json, print_notes, printable
from remerge.errors import RemergeError, UsageError

if TYPE_CHECKING:
    from remerge.serving.promoting import Promotion, Step


@click.command("promote")
@click.argument("target", metavar="NAME")
@click.option(
    "--to", default="production", show_default=True, metavar="REF", help="The name that is moved."
)
@gate_options
@click.option("--format", "form", help="The format whose limits hold; found out by default.")
@click.option(
    "--engine",
    help="Who will serve it, and is to load it now: vllm, llama.cpp, onnxruntime, transformers, "
    "tgi or tensorrt-llm; by default what suits its kind and is installed.",
)
@click.option("--again", is_flag=True, help="Compare anew, whatever was recorded.")
@click.option(
    "--skip",
    type=click.Choice(["compare", "check"]),
    multiple=True,
    help="Leave this step out; needs --reason, and the log keeps both.",
)
@click.option("--reason", metavar="TEXT", default="", help="Why a step is left out.")
@click.option("--dry-run", is_flag=True, help="Say what each step would do; do none.")
@device
@threads
@engine_python
@store
@json_output
@quiet
@verbose
def command(
    target: str,
    to: str,
    form: str | None,
    engine: str | None,
    again: bool,
    skip: tuple[str, ...],
    reason: str,
    dry_run: bool,
    device: str,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Point REF to the artefact NAME of the store, after it was shown that it deserves it.

    Four steps: 1 its bytes are read and derived again; 2 the compare gate (a recorded comparison of
    these bytes by a gate at least as strict is taken); 3 it is loaded in its engine and checked;
    4 REF is moved, with a line in the store's log. The first that fails is named, its exit code
    is the command's, and nothing is moved.

    \b
    remerge promote support-v2 --to production --eval test.jsonl
    remerge promote support-v2 --to staging --engine vllm --max-kl 0.01
    """
    import remerge

    if reason and not skip:
        raise UsageError("--reason says why a step is left out.", hint="Say which: --skip compare.")
    steps: list[Step] = []

    def told(step: Step) -> None:
        steps.append(step)
        if not quiet and not as_json:
            _print(step, verbose=verbose, dry_run=dry_run)

    silent = quiet or as_json
    try:
        done = remerge.promote(
            target,
            to,
            store=place,
            gate=take_gate(options, None),
            form=form,
            engine=engine,
            anew=again,
            skip=skip,
            reason=reason,
            dry_run=dry_run,
            device=device,
            threads=threads,
            engine_python=pythons(engine_python),
            told=told,
            report=lambda step: counter(step, quiet=silent),
        )
    except RemergeError as error:
        if not as_json or not steps:
            raise
        print_json(_document(target, to, steps, None, error))
        click.echo(f"error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error
    if as_json:
        print_json(_document(target, to, steps, done, None))
    elif not quiet:
        _print_outcome(done, skip)


def _print(step: Step, *, verbose: bool, dry_run: bool) -> None:
    """A line a step; what it found in full where it failed, or on request."""
    if step.state == "not run" and not dry_run:
        return
    head = f"{step.number} of {step.of}  {step.title}"
    if dry_run:
        click.echo(printable(f"{head:<28}  {step.summary}"))
        return
    state = "FAILED" if step.state == "failed" else step.state
    click.echo(printable(f"{head:<28}  {state}: {step.summary} ({step.seconds:.1f} s)"))
    if step.findings is not None and (verbose or step.state == "failed"):
        _print_findings(step)


def _print_findings(step: Step) -> None:
    from remerge.cli.check_report import print_report
    from remerge.cli.compare_report import print_comparison
    from remerge.validation.check import CheckReport
    from remerge.validation.compare import CompareReport

    if isinstance(step.findings, CompareReport):
        print_comparison(step.findings, verbose=False)
    elif isinstance(step.findings, CheckReport):
        print_report(step.findings, verbose=False)
    elif step.findings is not None:
        print_notes(step.findings.notes)


def _print_outcome(done: Promotion, skip: tuple[str, ...]) -> None:
    if skip and done.moved:
        print_notes([f"not done, as asked: {', '.join(skip)}; the log says so."])
    if done.already:
        click.echo(f"{done.to} names {done.id[:12]} already: nothing was changed")
    elif done.dry_run:
        click.echo("dry run: nothing was done")
    else:
        before = "" if done.was is None else f" (was {done.was[:12]}; remerge rollback)"
        click.echo(f"promoted: {done.to} is {done.target}, {done.id[:12]}{before}")


def _document(
    target: str,
    to: str,
    steps: list[Step],
    done: Promotion | None,
    error: RemergeError | None,
) -> dict[str, Any]:
    from remerge.serving.promoting import document

    return {
        "target": target,
        "id": None if done is None else done.id,
        "to": to,
        "was": None if done is None else done.was,
        "promoted": done is not None and done.moved,
        "already": done is not None and done.already,
        "dry_run": done is not None and done.dry_run,
        "steps": [document(step) for step in steps],
        "error": None if error is None else error_document(error),
    }
