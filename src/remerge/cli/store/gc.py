"""``remerge store gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from remerge.cli.options import (
    device,
    engine_python,
    json_output,
    pythons,
    quiet,
    store,
    threads,
)
from remerge.cli.output import print_json, progress, size

if TYPE_CHECKING:
    from remerge.artefacts.store.collecting import Collection, Decided


@click.command("gc")
@click.argument("targets", metavar="[ARTEFACT]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Say what would go, why, and how many bytes.")
@click.option("--force", is_flag=True, help="Delete also what cannot be made again.")
@click.option(
    "--keep-last",
    type=click.IntRange(0),
    metavar="N",
    help="Keep the newest N of each line (same base, adapters and form).",
)
@click.option("--keep-within", metavar="TIME", help="Keep what was added within 12h, 30d, 4w, 6m.")
@click.option(
    "--keep-tag", metavar="PATTERN", multiple=True, help="Keep what has such a name; repeatable."
)
@device
@threads
@engine_python
@store
@json_output
@quiet
def command(
    targets: tuple[str, ...],
    dry_run: bool,
    force: bool,
    keep_last: int | None,
    keep_within: str | None,
    keep_tag: tuple[str, ...],
    device: str,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Delete the bytes of merges that can be made again; their records stay.

    Only what base and adapters bring back goes, after both were read and one derivation gave the
    same bytes. Adapters, bases and pinned artefacts are never collected. Without ARTEFACT all
    merges are considered that no option keeps.

    \b
    remerge store gc --dry-run
    remerge store gc --keep-last 2 --keep-within 30d --keep-tag 'prod*'
    """
    import remerge

    with progress("proving", quiet=quiet or as_json) as report:
        found = remerge.Store(place).gc(
            targets,
            keep_last=keep_last,
            keep_within=keep_within,
            keep_tag=keep_tag,
            dry_run=dry_run,
            force=force,
            device=device,
            threads=threads,
            engine_python=pythons(engine_python),
            report=report,
        )
    if as_json:
        print_json(_document(found))
    elif not quiet:
        for one in found.decided:
            name = (one.row.names or (f"({one.row.title})",))[0]
            click.echo(f"  {_verb(one, dry_run=dry_run):<13} {name}: {_reason(one)}")
        if found.swept:
            click.echo(f"  {size(found.swept)} belong to no artefact")
        click.echo(f"{'would free' if dry_run else 'freed'}: {size(found.nbytes)}")


def _verb(one: Decided, *, dry_run: bool) -> str:
    if one.action == "keep":
        return "keep"
    return "would collect" if dry_run else "collected"


def _reason(one: Decided) -> str:
    from remerge.artefacts.store.words import rebuildable_in

    if one.action == "keep":
        return one.why
    again = "" if one.seconds is None else f", {rebuildable_in(one.seconds)}"
    return f"{size(one.nbytes)}; {one.why}{again}"


def _document(found: Collection) -> dict[str, Any]:
    return {
        "dry_run": found.dry_run,
        "bytes": found.nbytes,
        "bytes_of_none": found.swept,
        "artefacts": [
            {
                "id": one.row.id,
                "names": list(one.row.names),
                "action": one.action,
                "why": one.why,
                "bytes": one.nbytes,
                "rebuildable": one.rebuildable,
                "seconds": one.seconds,
            }
            for one in found.decided
        ],
    }
