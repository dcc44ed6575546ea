"""A command that takes words for another program after ``--``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

_KEY = "remerge.extra"


class WithExtra(click.Command):
    """Words after ``--`` are kept apart: without it they would be arguments too many.

    An option that is in ``alone`` may stand without its value: unless the next word is one of
    those named for it, that is an argument.
    """

    def __init__(self, *args: Any, alone: Mapping[str, Sequence[str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._alone = alone

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: tuple[str, ...] = ()
        if "--" in args:
            place = args.index("--")
            args, words = args[:place], tuple(args[place + 1 :])
        ctx.meta[_KEY] = words
        found: list[str] = []
        for word, following in zip(args, [*args[1:], ""], strict=True):
            values = self._alone.get(word)
            is_alone = values is not None and following not in values
            found.append(f"{word}={self._alone[word][0]}" if is_alone else word)
        return super().parse_args(ctx, found)


def extra_words() -> tuple[str, ...]:
    """What came after ``--``."""
    return click.get_current_context().meta.get(_KEY, ())
