"""``remerge doctor``: what is there, and what it enables."""

from __future__ import annotations

from typing import Any

import click

from remerge.cli.options import engine_python, json_output, pythons
from remerge.cli.output import print_json, print_table, size


@click.command("doctor")
@engine_python
@json_output
def command(engine_python: tuple[str, ...], as_json: bool) -> None:
    """Say what is there: versions, this machine, engines and what each enables here."""
    from remerge.engines.survey import survey

    found = survey(pythons(engine_python))
    if as_json:
        print_json(found)
        return
    remerge, machine = found["remerge"], found["machine"]
    click.echo(f"remerge {remerge['version']}, Python {remerge['python']}")
    print_table([(n, v or "not installed") for n, v in remerge["packages"].items()])
    click.echo("machine")
    print_table(_machine(machine))
    click.echo("engines")
    print_table([row for engine in found["engines"] for row in _engine(engine)])


def _machine(found: dict[str, Any]) -> list[tuple[str, str]]:
    able = found["instructions"]
    said = "not told" if able is None else ", ".join(able) or "none that engines ask for"
    gpus = [f"{gpu['name']}, {size(gpu['memory'])}" for gpu in found["gpus"]]
    if gpus and found["torch_sees_gpus"] < len(gpus):
        gpus.append(f"torch uses {found['torch_sees_gpus']} of them: is it a build for CUDA?")
    free = found["cache_free"]
    cache = "none: set XDG_CACHE_HOME" if free is None else f"{found['cache']}, {size(free)} free"
    return [
        ("system", found["system"]),
        ("processor", f"{found['processor']}, {found['cores']} cores"),
        ("instructions", said),
        ("memory", size(found["memory"])),
        ("GPUs", "; ".join(gpus) or "none"),
        ("cache", cache),
    ]


def _engine(found: dict[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    state = f"your own, {found['place']}" if found["state"] == "yours" else found["state"]
    rows = [
        (found["name"], f"{state}: {versions}" if versions else state),
        ("", f"for {found['enables']}"),
    ]
    rows += [
        ("", f"{limit['what']} needs {limit['needs']}: not here")
        for limit in found["limits"]
        if limit["here"] is False
    ]
    if found["install"]:
        rows.append(("", f"Run: {found['install']}"))
    return rows
