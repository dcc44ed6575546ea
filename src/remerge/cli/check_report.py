"""What ``remerge check`` prints."""

from __future__ import annotations

import click

from remerge.cli.output import print_columns, print_notes, print_table
from remerge.validation.check import CheckReport

_SHOWN = 60


def print_report(report: CheckReport, *, verbose: bool) -> None:
    """The verdict and the word it earned, what was measured, and what engine and reference say."""
    verdict = "passed" if report.passed else "FAILED"
    click.echo(f"{verdict}, {report.word}: {report.output} in {report.engine}")
    rows = [("format", report.format or "not known"), ("against", report.reference)]
    found = report.comparison
    if found is not None:
        told = "" if found.likeliest is None else f", of {found.likeliest} tokens a position"
        rows += [
            ("positions", f"{found.positions}, vocabulary of {found.vocabulary:,}{told}"),
            (
                "log-probability",
                f"of what follows: mean |d| {found.mean_difference:.2e}, "
                f"max {found.max_difference:.2e}",
            ),
            ("KL divergence", f"mean {found.kl_mean:.2e}, max {found.kl_max:.2e} nats"),
            ("perplexity", f"{found.perplexity:.4f}, reference {found.perplexity_reference:.4f}"),
        ]
    if report.noise is not None:
        rows.append(
            ("errors expected", f"KL {report.noise.kl_mean:.2e} of random errors of this size")
        )
    if report.share is not None:
        rows.append(("base to merge", f"KL {report.share.kl:.2e}"))
    print_table(rows)
    print_columns(
        [
            ("gate", "measured", "limit", ""),
            *(
                (gate.name, gate.measured, gate.limit, "holds" if gate.passed else "FAILS")
                for gate in report.gates
            ),
        ]
    )
    shown = report.tokenisation if verbose else report.tokenisation[:3]
    for difference in shown:
        click.echo(f"  cut differently: {difference}")
    for answer in report.answers:
        click.echo(f"  {_short(answer.prompt)}")
        print_table([("", f"{report.engine}: {_short(answer.engine)}")])
        if answer.engine != answer.reference:
            print_table([("", f"reference: {_short(answer.reference)}")])
    if report.versions and verbose:
        print_table(list(report.versions.items()))
    print_notes(report.notes)


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 4]}...{shown[-1]}"
