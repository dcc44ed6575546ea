"""Groups that import a command when it is asked for: the help must not wait for torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click


def lazy_group(package: str, names: Sequence[str]) -> type[click.Group]:
    """A group whose command NAME is ``command`` in the module PACKAGE.NAME."""

    class Lazy(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(names)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in names:
                return None
            return importlib.import_module(f"{package}.{cmd_name}").command

    return Lazy
