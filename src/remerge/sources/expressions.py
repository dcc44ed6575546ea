"""Regular expressions from configuration files: they come from strangers."""

from __future__ import annotations

import re

from remerge.errors import BadInput

_MAX_LENGTH = 2000
# A repeated group that ends in a repetition can take exponential time on a name.
_NESTED_REPEAT = re.compile(r"[*+}]\)[*+{]")


def compiled(text: str, whole: str, what: str, hint: str) -> re.Pattern[str]:
    """``whole``, an expression made around the stranger's ``text``, compiled.

    ``what`` names file, field and text in the message. Raises `BadInput` for a text that is no
    expression, or one that could take forever to match.
    """
    if len(text) > _MAX_LENGTH or _NESTED_REPEAT.search(text):
        raise BadInput(
            f"{what} is a regular expression that could take forever to match.",
            why="It is very long, or repeats a group that ends in a repetition.",
            hint=hint,
        )
    try:
        return re.compile(whole)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(f"{what} is no regular expression: {error}.", hint=hint) from error
