"""What ``remerge compare`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remerge.artefacts.test_result import Bisection, Differing, Figures, Interval
from remerge.cli.output import print_columns, print_notes, print_table, size

if TYPE_CHECKING:
    from remerge.validation.compare import CompareReport

_DIFFERING = 3
_WORST = 5
_WIDTH = 70


def document(report: CompareReport) -> dict[str, Any]:
    """A report as JSON data."""
    found = report.figures.model_dump(mode="json")
    written = None if report.written is None else str(report.written)
    return {"output": str(report.output), "passed": report.passed, "written": written, **found}


def print_comparison(report: CompareReport, *, verbose: bool) -> None:
    """Verdict and gates last, as they are what is looked for."""
    figures = report.figures
    click.echo(f"{report.output} in {figures.engine}, against {figures.reference}")
    _print_weights(figures, report.wrong)
    _print_logits(figures)
    _print_tasks(figures)
    _print_harness(figures)
    shown = figures.differing if verbose else figures.differing[:_DIFFERING]
    for one in shown:
        _print_differing(one)
    if len(figures.differing) > len(shown):
        click.echo(f"  ... {len(figures.differing) - len(shown)} more answers differ (-v)")
    if figures.bisection is not None:
        _print_bisection(figures.bisection)
    print_notes(figures.notes)
    print_gates(figures)
    if verbose:
        for cost in figures.costs:
            asked = f"asked {cost.asked}, known {cost.cached}"
            click.echo(f"  {cost.side}: {cost.seconds:.1f} s, {size(cost.peak_memory)}, {asked}")
    click.echo(f"{figures.verdict.upper()} in {figures.seconds:.1f} s")
    if report.written is not None:
        click.echo(f"written to {report.written}")


def print_gates(figures: Figures) -> None:
    """What had to hold, and whether it does."""
    rows = [
        (gate.name, gate.measured, gate.limit, "holds" if gate.passed else "FAILS")
        for gate in figures.gates
    ]
    print_columns([("gate", "measured", "limit", ""), *rows])


def _print_weights(figures: Figures, wrong: tuple[str, ...]) -> None:
    found = figures.weights
    if found is None:
        return
    click.echo("weights")
    rows: list[tuple[str, str]] = []
    if found.worst_tensor:
        worst = f"worst {found.worst:.3g} ({found.worst_tensor}), mean {found.mean:.3g}"
        rows.append((f"errors, in units in the last place of {found.dtype}", worst))
    if found.kept is not None and found.noise is not None:
        kept = f"{found.kept:.4%} kept, {found.noise:.2%} of it added as noise"
        rows.append(("delta", kept))
    for name in wrong[:_WORST]:
        tensor = found.tensors[name]
        told = [] if tensor.kept is None else [f"{tensor.kept:.2f} of the delta"]
        told += [] if tensor.excess is None else [f"{tensor.excess:.3g} x one rounding's error"]
        rows.append((f"not the merge's: {name}", ", ".join(told)))
    if len(wrong) > _WORST:
        rows.append((f"... and {len(wrong) - _WORST} more", ""))
    print_table(rows)


def _print_logits(figures: Figures) -> None:
    if not figures.logits:
        return
    click.echo("probabilities")
    head = ("texts", "positions", "KL, nats", "largest", "top-1", "top-5", "|d| mean", "largest")
    head = (*head, "perplexity: base", "adapter", "merged")
    rows = [
        (
            one.name,
            f"{one.positions}",
            f"{'>= ' if one.likeliest is not None else ''}{one.kl_mean:.2e}",
            f"{one.kl_max:.1e}",
            f"{one.top1:.2%}",
            f"{one.top5:.2%}",
            f"{one.difference_mean:.1e}",
            f"{one.difference_max:.1e}",
            "-" if one.perplexity_base is None else f"{one.perplexity_base:.4g}",
            f"{one.perplexity_adapter:.5g}",
            f"{one.perplexity_merged:.5g}",
        )
        for one in figures.logits
    ]
    print_columns([head, *rows])


def _print_tasks(figures: Figures) -> None:
    if not figures.tasks:
        return
    click.echo("scores, with 95 % intervals")
    head = ("task", "questions", "base", "adapter", "merged", "difference", "lost", "won", "p")
    rows = [
        (
            one.name,
            f"{one.questions}",
            "-" if one.base is None else _interval(one.base),
            _interval(one.adapter),
            _interval(one.merged),
            _interval(one.delta, signed=True),
            f"{one.lost}",
            f"{one.won}",
            f"{one.p_value:.2g}",
        )
        for one in figures.tasks
    ]
    print_columns([head, *rows])


def _print_harness(figures: Figures) -> None:
    if not figures.harness:
        return
    click.echo("lm-eval")

    def cell(value: float | None, error: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")

    rows = [
        (
            f"{one.task} {one.metric}",
            cell(one.base, one.base_error),
            cell(one.adapter, one.adapter_error),
            cell(one.merged, one.merged_error),
        )
        for one in figures.harness
    ]
    print_columns([("metric", "base", "adapter", "merged"), *rows])


def _print_differing(one: Differing) -> None:
    def marked(text: str, right: bool) -> str:
        return f"{_short(text)} ({'right' if right else 'wrong'})"

    click.echo(f"  {one.task}: {_short(one.prompt)}")
    rows = [("expected", _short(one.expected))]
    rows += [] if one.base is None else [("base", _short(one.base))]
    rows.append(("adapter", marked(one.adapter, one.adapter_right)))
    rows.append(("merged", marked(one.merged, one.merged_right)))
    print_table([(f"  {name}", text) for name, text in rows])


def _print_bisection(found: Bisection) -> None:
    click.echo(f"where it hurts (KL {found.kl:.2e})")
    rows = [("put right alone", "KL left", "share gone")]
    rows += [(one.name, f"{one.kl:.2e}", f"{one.share:.1%}") for one in found.suspects]
    print_columns(rows)
    if found.proposal is not None:
        proven = "proven to pass" if found.proven else "not proven"
        click.echo(f"  proposal ({proven}): {found.proposal}")
    if found.command is not None:
        click.echo(f"  {found.command}")


def _interval(found: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _WIDTH else f"{shown[: _WIDTH - 4]}...{shown[-1]}"
