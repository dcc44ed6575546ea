"""The pages against the program: every option, family, exit code and command that they name."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from remerge.adapters.families import FAMILIES, UNMERGEABLE
from remerge.cli import group
from remerge.errors import RemergeError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {
    name: importlib.import_module(f"remerge.cli.{name}").command
    for name in group.list_commands(click.Context(group))
}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _lines(page: Path) -> list[str]:
    """Everything that a page tells its reader to type after the name of the program."""
    return re.findall(
        rf"(?:^(?:\$ )?|`)remerge ((?:{'|'.join(COMMANDS)}) [^`\n#>]*)", page.read_text(), re.M
    )


def _options(command: click.Command) -> list[click.Parameter]:
    """The options of a command, and of those below it."""
    found = list(command.params)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += _options(below)
    return found


def _understood(command: click.Command, name: str, words: list[str]) -> None:
    context = command.make_context(name, words, resilient_parsing=False)
    if isinstance(command, click.Group) and words:
        below = command.get_command(context, words[0])
        assert below is not None, f"{name} {words[0]}"
        # A sentence may name a command alone.
        if len(words) > 1 or not below.params:
            _understood(below, words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_is_understood(page: Path) -> None:
    for line in _lines(page):
        name, *words = shlex.split(line)
        _understood(COMMANDS[name], name, words)


# The page of benchmarks names options of its own script.
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "benchmarks"], ids=named)
def test_every_option_exists(page: Path) -> None:
    known = {
        name
        for command in COMMANDS.values()
        for option in _options(command)
        for name in (*option.opts, *option.secondary_opts)
    }
    named = re.findall(r"`(--[a-z0-9-]+)", page.read_text())
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_family_is_told_of() -> None:
    merged, refused = (ROOT / "docs/adapters.md").read_text().split("## What is refused", 1)
    assert set(re.findall(r"`([A-Z0-9_]{2,})`", merged)) == set(FAMILIES)
    refused = refused.split("## Other trainers", 1)[0]
    assert set(re.findall(r"`([A-Z0-9_]{2,})`", refused)) == set(UNMERGEABLE)


def test_every_exit_code_is_told_of() -> None:
    codes = {
        int(code) for code in re.findall(r"^\| (\d+)", (ROOT / "docs/errors.md").read_text(), re.M)
    }
    kinds = [RemergeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} <= codes


def test_every_method_is_told_of() -> None:
    """Its row names every parameter, with the default, and nothing else."""
    from remerge.cli.methods import PARAMETERS
    from remerge.merging.methods.registry import METHODS

    page = (ROOT / "docs/several.md").read_text()
    rows = {
        cells[0].strip("`"): cells[2]
        for cells in (re.split(r"\s*\|\s*", line)[1:-1] for line in page.splitlines())
        if len(cells) == 4 and cells[0].startswith("`")
    }
    assert rows.keys() == METHODS.keys()
    taken: set[str] = set()
    for name, method in METHODS.items():
        fields = {f.alias or n: f for n, f in method.parameters.model_fields.items()}
        taken |= fields.keys()
        told = [
            f"`{key}`{'*' if isinstance(field.default, tuple) else ''} {_default(field.default)}"
            for key, field in fields.items()
        ]
        assert sorted(filter(None, rows[name].split(", "))) == sorted(told), name
    assert taken == PARAMETERS.keys()


def _default(value: object) -> str:
    if isinstance(value, tuple):
        value = value[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "largest" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
