"""``remerge rollback``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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
from remerge.cli.output import counter, print_json, size

if TYPE_CHECKING:
    from remerge.serving.rolling_back import Past

# As many digits could begin an id.
_NUMBER = re.compile(r"-?[0-9]{1,5}")


@click.command("rollback")
@click.option(
    "--of", default="production", show_default=True, metavar="REF", help="The name that is moved."
)
@click.option(
    "--to",
    default="1",
    show_default=True,
    metavar="N|ARTEFACT",
    help="So many moves back, or an artefact that it named before.",
)
@click.option("--list", "listed", is_flag=True, help="Say what it named, the newest first.")
@device
@threads
@engine_python
@store
@json_output
@quiet
def command(
    of: str,
    to: str,
    listed: bool,
    device: str,
    threads: int | None,
    engine_python: tuple[str, ...],
    place: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Point REF back to what it named before, after every byte of that was read.

    Twice goes back two. What was collected is made again first; what is damaged is refused (exit
    4), naming an older one that is whole. Nothing else is asked: it was promoted before.

    \b
    remerge rollback
    remerge rollback --of staging --to 2
    remerge rollback --list
    """
    import remerge

    if listed:
        _print_past(remerge.past(of, store=place), of, as_json=as_json, quiet=quiet)
        return
    done = remerge.rollback(
        of,
        to=int(to) if _NUMBER.fullmatch(to) else to,
        store=place,
        device=device,
        threads=threads,
        engine_python=pythons(engine_python),
        report=counter("read", quiet=quiet or as_json),
    )
    if as_json:
        print_json(
            {
                "name": done.name,
                "id": done.id,
                "was": done.was,
                "moved": done.moved,
                "rebuilt": done.rebuilt,
                "files": done.files,
                "bytes": done.nbytes,
            }
        )
    elif not quiet and not done.moved:
        click.echo(f"{done.name} names {done.id[:12]} already: nothing was changed")
    elif not quiet:
        again = ", made again" if done.rebuilt else ""
        read = f"{done.files} files, {size(done.nbytes)}, every byte read{again}"
        click.echo(f"rolled back: {done.name} is {done.id[:12]} (was {done.was[:12]}); {read}")


def _print_past(past: list[Past], name: str, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        found = [
            {
                "back": one.back,
                "id": one.stay.artefact,
                "since": one.stay.since,
                "action": one.stay.action,
                "names": list(one.names),
                "status": one.status,
            }
            for one in past
        ]
        print_json({"name": name, "history": found})
        return
    for one in () if quiet else past:
        back = {None: "", 0: "now"}.get(one.back, f"--to {one.back}")
        names = ", ".join(n for n in one.names if n != name)
        line = f"{one.stay.since[:19]}  {one.stay.action:<8} {one.stay.artefact[:12]}"
        click.echo(f"{back:>7}  {line}  {names} ({one.status})")
