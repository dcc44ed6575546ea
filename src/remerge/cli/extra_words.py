"""A command that takes words for another program after ``--``."""

from __future__ import annotations

import click

_KEY = "remerge.extra"


class WithExtra(click.Command):
    """Words after ``--`` are kept apart: without it they would be arguments too many."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: tuple[str, ...] = ()
        if "--" in args:
            place = args.index("--")
            args, words = args[:place], tuple(args[place + 1 :])
        ctx.meta[_KEY] = words
        return super().parse_args(ctx, args)


def extra_words() -> tuple[str, ...]:
    """What came after ``--``."""
    return click.get_current_context().meta.get(_KEY, ())
