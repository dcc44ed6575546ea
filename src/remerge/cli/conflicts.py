"""``remerge conflicts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remerge.cli.options import json_output, quiet, threads, verbose
from remerge.cli.output import print_columns, print_json, print_notes

if TYPE_CHECKING:
    from remerge.artefacts.conflict_report import ConflictFigures, PairConflict
    from remerge.artefacts.conflicting import Conflicts

_SHOWN = 3
_PAIRS = ("advice", "shared", "by chance", "conflict", "cosine", "signs against", "norms", "common")
_MODULES = ("weight", "shared", "conflict", "cosine", "inputs", "outputs", "signs against", "norms")


@click.command("conflicts", short_help="Say whether several adapters of BASE get along.")
@click.argument("base")
@click.argument("adapters", metavar="ADAPTER ADAPTER...", nargs=-1, required=True)
@threads
@json_output
@quiet
@verbose
def command(
    base: str,
    adapters: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Say whether the ADAPTERs of BASE get along, before they are merged.

    Compares every two of them, module by module, from their factors alone, and says which method
    suits them, or that they are better kept separate. See docs/conflicts.md.
    """
    import remerge

    if len(adapters) < 2:
        raise click.UsageError("Name BASE and at least two adapters.")
    found = remerge.conflicts(base, adapters, threads=threads, progress=not (quiet or as_json))
    if as_json:
        print_json(_document(found))
    elif not quiet:
        _print(found, verbose=verbose)


def _document(found: Conflicts) -> dict[str, Any]:
    return {
        "adapters": list(found.labels),
        **found.report.model_dump(),
        "notes": [*found.notes, *found.report.notes],
    }


def _print(found: Conflicts, *, verbose: bool) -> None:
    report = found.report
    print_notes((*found.notes, *report.notes))
    click.echo(f"recommended for all: {report.advice}")
    for reason in report.reasons:
        click.echo(f"  {reason}")
    click.echo("pairs, the worst first")
    rows = [(_names(found, p), p.advice, *_pair_cells(p)) for p in report.pairs]
    print_columns([("", *_PAIRS), *rows])
    for place, pair in enumerate(report.pairs):
        if place and pair.advice == "sum" and not verbose:
            continue
        shown = pair.modules if verbose else pair.modules[:_SHOWN]
        click.echo(f"{_names(found, pair)}: {pair.advice}")
        for reason in pair.reasons:
            click.echo(f"  {reason}")
        for name in pair.replaced:
            click.echo(f"  replaced by both: {name}")
        if shown:
            cells = [(m.name, _share(m.weight), *_module_cells(m)) for m in shown]
            what = "" if len(shown) == pair.common else f"worst {len(shown)} of {pair.common} "
            print_columns([(f"{what}modules", *_MODULES), *cells])


def _names(found: Conflicts, pair: PairConflict) -> str:
    return " + ".join(found.labels[number - 1] for number in pair.adapters)


def _pair_cells(pair: PairConflict) -> tuple[str, ...]:
    f = pair.overall
    shares = (_share(f.shared), _share(f.shared_by_chance), _share(f.conflict))
    return (*shares, *_direction_cells(f), _number(f.norm_ratio), str(pair.common))


def _module_cells(f: ConflictFigures) -> tuple[str, ...]:
    spaces = _share(f.input_overlap), _share(f.output_overlap)
    cosine, signs = _direction_cells(f)
    return _share(f.shared), _share(f.conflict), cosine, *spaces, signs, _number(f.norm_ratio)


def _direction_cells(f: ConflictFigures) -> tuple[str, str]:
    return _number(f.cosine), _share(f.sign_conflicts_weighted)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
