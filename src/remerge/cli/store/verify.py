"""``remerge store verify``."""

from __future__ import annotations

import click

from remerge.cli.options import json_output, quiet, store
from remerge.cli.output import print_json, progress, size


@click.command("verify")
@click.argument("targets", metavar="[ARTEFACT]...", nargs=-1)
@store
@json_output
@quiet
def command(targets: tuple[str, ...], place: str | None, as_json: bool, quiet: bool) -> int | None:
    """Read every byte of some artefacts, or of all, and hold it to its digest.

    Exit code 4: something is damaged; every piece is named, with what brings it back.
    """
    import remerge

    with progress("verifying", quiet=quiet or as_json) as report:
        checked = remerge.Store(place).verify(targets, report)
    if as_json:
        print_json(
            {
                "verified": not checked.damage,
                "artefacts": checked.artefacts,
                "files": checked.files,
                "bytes": checked.nbytes,
                "damage": [
                    {"what": one.what, "artefact": one.artefact, "hint": one.hint}
                    for one in checked.damage
                ],
            }
        )
    else:
        for one in checked.damage:
            click.echo(f"damaged: {one.what} {one.hint or ''}".rstrip(), err=True)
        if not quiet and not checked.damage:
            read = f"{checked.files} files, {size(checked.nbytes)}"
            click.echo(f"verified: {checked.artefacts} artefacts, {read}")
    return remerge.IntegrityError.exit_code if checked.damage else None
