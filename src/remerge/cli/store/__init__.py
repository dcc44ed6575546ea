"""``remerge store``: artefacts kept, named, collected and made again."""

from __future__ import annotations

import click

from remerge.cli.lazy import lazy_group

_COMMANDS = (
    "add",
    "ls",
    "show",
    "log",
    "tag",
    "pin",
    "materialize",
    "trace",
    "diff",
    "verify",
    "gc",
    "rebuild",
    "reindex",
    "rm",
)


@click.group("store", cls=lazy_group("remerge.cli.store", _COMMANDS))
def command() -> None:
    """Keep artefacts by their digests, name them, and make again what was collected.

    ARTEFACT is a name, an id, a merge key, or the first six digits or more of one.
    """
