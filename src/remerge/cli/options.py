"""Options that every command spells the same."""

from __future__ import annotations

from collections.abc import Sequence

import click

from remerge.errors import UsageError

json_output = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Print every tensor concerned.")
device = click.option(
    "--device", default="cpu", show_default=True, help="cpu or cuda; the bytes are the same."
)
threads = click.option(
    "--threads", type=click.IntRange(1, 256), help="Worker threads; the bytes are the same."
)
max_memory = click.option(
    "--max-memory",
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Resident memory to stay under, adapter apart.",
)
engine_python = click.option(
    "--engine-python",
    metavar="NAME=PATH",
    multiple=True,
    help="An interpreter of your own for an engine, e.g. llama.cpp=/opt/llama/bin/python.",
)
store = click.option(
    "--store",
    "place",
    metavar="DIR",
    help="The store's directory; REMERGE_STORE, or one among the user's data, by default.",
)


def pythons(given: Sequence[str]) -> dict[str, str]:
    """``--engine-python`` by the engine's name; raises `UsageError`."""
    from remerge.engines.registry import engine_of

    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UsageError(f"--engine-python {text!r} is no NAME=PATH.")
        engine_of(name)
        found[name] = path
    return found
