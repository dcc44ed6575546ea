"""``remerge store diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remerge.cli.options import json_output, quiet, store, verbose
from remerge.cli.output import print_json, print_notes, print_table, printable, progress

if TYPE_CHECKING:
    from remerge.artefacts.differences import Differences
    from remerge.artefacts.tensor_differences import TensorChange, TensorDifferences

_SHOWN = 10


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@store
@json_output
@quiet
@verbose
def command(a: str, b: str, place: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what differs between two artefacts: base, adapters, recipe, scores, tensors.

    A and B are files, directories or artefacts of the store. Tensors are compared by name and byte,
    whatever files they lie in.
    """
    import remerge

    with progress("comparing", quiet=quiet or as_json) as report:
        found = remerge.Store(place).diff(a, b, report)
    if as_json:
        print_json(found.document())
        return
    _print(found, verbose=verbose)


def _print(found: Differences, *, verbose: bool) -> None:
    print_notes(found.notes)
    click.echo(f"{found.a} and {found.b}: " + ("no difference" if found.same else "they differ"))
    for part in dict.fromkeys(row.part for row in found.rows):
        click.echo(part)
        rows = [row for row in found.rows if row.part == part]
        print_table([(printable(r.what), f"{_value(r.a)} -> {_value(r.b)}") for r in rows])
    files = [("changed", found.changed), ("added", found.added), ("removed", found.removed)]
    if any(names for _, names in files):
        click.echo("files")
        print_table([(word, _some(names, verbose=verbose)) for word, names in files if names])
    if found.tensors is not None:
        _print_tensors(found.tensors, verbose=verbose)


def _print_tensors(found: TensorDifferences, *, verbose: bool) -> None:
    said = f"{found.compared} compared, {found.same} the same, {len(found.changed)} changed"
    click.echo(f"tensors: {said}")
    shown = found.changed if verbose else found.changed[:_SHOWN]
    print_table([(printable(one.name), _change(one)) for one in shown])
    if len(shown) < len(found.changed):
        click.echo(f"  and {len(found.changed) - len(shown)} more: -v lists them")
    rows = [("added", found.added), ("removed", found.removed)]
    print_table([(word, _some(names, verbose=verbose)) for word, names in rows if names])


def _change(one: TensorChange) -> str:
    if one.differing is None or not one.of:
        return f"{one.a} -> {one.b}"
    return f"{one.a}: {one.differing} of {one.of} differ ({one.differing / one.of:.1%})"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    text = printable(str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _some(names: tuple[str, ...], *, verbose: bool) -> str:
    shown = names if verbose else names[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return printable(", ".join(shown)) + more
