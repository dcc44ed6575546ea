"""``remerge engines``: environments of other people's programs."""

from __future__ import annotations

from typing import Any

import click

from remerge.cli.options import engine_python, json_output, pythons
from remerge.cli.output import print_json, print_table


@click.group("engines")
def command() -> None:
    """Install, check and remove the engines that other formats need.

    Each gets an environment of its own under the user's cache directory, since their versions
    cannot live together.
    """


@command.command("list")
@json_output
def list_engines(as_json: bool) -> None:
    """Say which engines there are, what they enable, and where they are installed."""
    from remerge.engines.environments import is_installed, place_of
    from remerge.engines.registry import ENGINES

    found: list[dict[str, Any]] = [
        {
            "name": engine.name,
            "enables": engine.enables,
            "installed": is_installed(engine),
            "place": str(place_of(engine)),
        }
        for engine in ENGINES.values()
    ]
    if as_json:
        print_json({"engines": found})
        return
    print_table(
        [
            (e["name"], f"{e['enables']} ({e['place'] if e['installed'] else 'not installed'})")
            for e in found
        ]
    )


@command.command()
@click.argument("name")
def install(name: str) -> None:
    """Make the environment of the engine NAME and see that it works."""
    from remerge.engines import environments
    from remerge.engines.registry import engine_of

    engine = engine_of(name)
    if environments.is_installed(engine):
        click.echo(f"already there: {environments.place_of(engine)}")
        return
    place = environments.install(engine, lambda step: click.echo(f"  {step}", err=True))
    click.echo(f"installed: {place}")


@command.command()
@click.argument("name")
@engine_python
def check(name: str, engine_python: tuple[str, ...]) -> None:
    """See whether the engine NAME works; its interpreter may be one of your own."""
    from remerge.engines import environments
    from remerge.engines.registry import engine_of
    from remerge.errors import BadInput

    engine = engine_of(name)
    python = environments.python_of(engine, pythons(engine_python))
    failure = environments.check(engine, python)
    if failure is not None:
        raise BadInput(
            f"The engine {name} does not work: {failure}",
            hint=f"Run: remerge engines remove {name}; remerge engines install {name}",
        )
    click.echo(f"works: {python}")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete the environment of the engine NAME."""
    from remerge.engines import environments
    from remerge.engines.registry import engine_of

    engine = engine_of(name)
    found = environments.remove(engine)
    click.echo(f"{'removed' if found else 'not there'}: {environments.place_of(engine)}")
