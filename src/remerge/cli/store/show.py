"""``remerge store show``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store, verbose
from remerge.cli.output import print_json, print_table, size


@click.command("show")
@click.argument("target", metavar="ARTEFACT")
@store
@json_output
@quiet
@verbose
def command(target: str, place: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what an artefact is, what it was made of, where its bytes are and how it was judged."""
    import remerge

    shown = remerge.Store(place).show(target)
    if as_json:
        print_json(shown.document())
        return
    if quiet:
        return
    record, state = shown.record, shown.state
    click.echo(", ".join(shown.names) or f"({state.title})")
    rows = [
        ("kind", record.kind if record.form is None else f"{record.kind}, {record.form}"),
        ("id", shown.id),
        ("added", state.added),
        ("size", f"{size(record.size)} in {len(record.files)} files"),
        ("bytes", shown.status + (", pinned" if state.pinned else "")),
    ]
    if record.merge_key is not None:
        rows.append(("merge key", record.merge_key))
    if record.base is not None:
        rows.append(("base", f"{record.base.name} {record.base.version}"))
    rows += [("adapter", f"{one.name} {one.version}") for one in record.adapters]
    if state.proof is not None:
        again = f"derived again in {state.proof.seconds:.1f} s with the same bytes"
        rows.append(("proved", f"{state.proof.time[:19]}, {again}"))
    rows += [("compared", f"{one.started[:19]}, {one.verdict}") for one in shown.evaluations]
    print_table(rows)
    if verbose:
        for file in (*record.files, *state.attached):
            click.echo(f"  {file.sha256}  {size(file.size):>10}  {file.name}")
