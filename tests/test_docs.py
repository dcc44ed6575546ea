"""The pages against the program: every option, family, exit code and command that they name."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from remerge.adapters.families import FAMILIES, UNMERGEABLE
from remerge.cli import group
from remerge.errors import RemergeError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    name: importlib.import_module(f"remerge.cli.{name}").command
    for name in group.list_commands(click.Context(group))
}


def _lines(page: Path) -> list[str]:
    """Everything that a page tells its reader to type after the name of the program."""
    return re.findall(
        rf"(?:^(?:\$ )?|`)remerge ((?:{'|'.join(COMMANDS)}) [^`\n#]*)", page.read_text(), re.M
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    for line in _lines(page):
        name, *words = shlex.split(line)
        command = COMMANDS[name]
        command.make_context(name, words, resilient_parsing=False)


# The page of benchmarks names options of its own script.
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "benchmarks"], ids=lambda p: p.name)
def test_every_option_exists(page: Path) -> None:
    known = {
        name for command in COMMANDS.values() for option in command.params for name in option.opts
    }
    named = re.findall(r"`(--[a-z0-9-]+)", page.read_text())
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"^\$ remerge (.+)$", (ROOT / "README.md").read_text(), re.M)
    assert len(shown) >= 2
    for line in shown:
        done = CliRunner().invoke(group, shlex.split(line))
        assert done.exit_code == 0, done.output
