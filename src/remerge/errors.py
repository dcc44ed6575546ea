"""Every failure a user can meet: what happened, where, the likely cause, what to do next.

The exit codes are part of the interface (docs/errors.md); nothing else in the package calls
``sys.exit`` or prints an error.
"""

from __future__ import annotations


class RemergeError(Exception):
    """A failure that the user can act on.

    ``what`` states the fact (file, tensor, shapes), ``why`` the likely cause and ``hint`` the
    next thing to do; together they make one paragraph.
    """

    exit_code = 1
    label = "internal"

    def __init__(self, what: str, *, why: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.why = why
        self.hint = hint
        super().__init__(what, why, hint)

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.hint) if part)


class UsageError(RemergeError):
    """The command line or the recipe asks for something that makes no sense."""

    exit_code = 2
    label = "usage"


class BadInput(RemergeError):
    """Base, adapter or recipe cannot give a right result; trying again will not help."""

    exit_code = 3
    label = "bad input"


class Unsupported(BadInput):
    """A kind of adapter or checkpoint that cannot be merged, refused by name."""

    label = "unsupported"


class IntegrityError(RemergeError):
    """A file is not what its manifest says."""

    exit_code = 4
    label = "integrity"


class NotReproduced(RemergeError):
    """Deriving the output again gave other bytes, or a gate failed."""

    exit_code = 5
    label = "not reproduced"


class Locked(RemergeError):
    """Another process is writing the same output."""

    exit_code = 6
    label = "locked"


class TryAgain(RemergeError):
    """A passing condition (disk full, network, I/O): the same command may succeed later."""

    exit_code = 75
    label = "try again"
