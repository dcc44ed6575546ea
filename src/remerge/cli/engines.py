"""``remerge engines``: environments of other people's programs."""

from __future__ import annotations

from typing import Any

import click

from remerge.cli.options import engine_python, json_output, pythons
from remerge.cli.output import print_json, size


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
    from remerge.engines.environments import place_of, size_of, state_of
    from remerge.engines.registry import ENGINES

    found: list[dict[str, Any]] = []
    for engine in ENGINES.values():
        state = state_of(engine)
        found.append(
            {
                "name": engine.name,
                "enables": engine.enables,
                "installed": state == "installed",
                "state": state,
                "place": str(place_of(engine)),
                # Measured where something is there, else what it took when it was pinned.
                "bytes": engine.disk if state == "not installed" else size_of(engine),
            }
        )
    if as_json:
        print_json({"engines": found})
        return
    width = max(len(entry["name"]) for entry in found)
    for entry in found:
        there, takes = entry["state"], size(entry["bytes"])
        where = f"about {takes}" if there == "not installed" else f"{takes} in {entry['place']}"
        click.echo(f"  {entry['name']:<{width}}  {entry['enables']} ({there}: {where})")


@command.command()
@click.argument("name")
@json_output
def install(name: str, as_json: bool) -> None:
    """Make the environment of the engine NAME and see that it works."""
    from remerge.engines import installing
    from remerge.engines.environments import is_installed, place_of
    from remerge.engines.registry import engine_of

    engine = engine_of(name)
    there = is_installed(engine)
    place = place_of(engine)
    if not there:
        installing.install(engine, lambda step: click.echo(f"  {step}", err=True))
    if as_json:
        print_json({"name": name, "place": str(place), "installed_now": not there})
        return
    click.echo(f"{'already there' if there else 'installed'}: {place}")


@command.command()
@click.argument("name")
@engine_python
@json_output
def check(name: str, engine_python: tuple[str, ...], as_json: bool) -> None:
    """See whether the engine NAME works; its interpreter may be one of your own."""
    from remerge.engines import checking, environments
    from remerge.engines.registry import engine_of
    from remerge.errors import BadInput

    engine, given = engine_of(name), pythons(engine_python)
    python = environments.python_of(engine, given)
    found = checking.check(engine, python)
    if found.failure is not None:
        again = f"remerge engines remove {name}; remerge engines install {name}"
        raise BadInput(
            f"The engine {name} does not work: {found.failure}",
            hint=None if name in given else f"Run: {again}",
        )
    if as_json:
        print_json(
            {"name": name, "python": str(python), "did": found.did, "versions": found.versions}
        )
        return
    versions = ", ".join(f"{package} {version}" for package, version in found.versions.items())
    click.echo(f"works: {python} ({found.did}; {versions})")


@command.command()
@click.argument("name")
@json_output
def remove(name: str, as_json: bool) -> None:
    """Delete the environment of the engine NAME; of a link to one, the link."""
    from remerge.engines import environments
    from remerge.engines.registry import engine_of

    engine = engine_of(name)
    found, place = environments.remove(engine), environments.place_of(engine)
    if as_json:
        print_json({"name": name, "place": str(place), "removed": found})
        return
    click.echo(f"{'removed' if found else 'not there'}: {place}")
