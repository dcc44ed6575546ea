"""How a store says what became of an artefact."""

from __future__ import annotations


def status_of(*, collected: bool, rebuildable: bool, seconds: float | None) -> str:
    """Where an artefact's bytes are, in a few words."""
    if not collected:
        return "here"
    if not rebuildable:
        return "deleted, not rebuildable"
    return f"collected, {rebuildable_in(seconds or 0.0)}"


def rebuildable_in(seconds: float) -> str:
    """How long making it again takes, going by the last time."""
    return f"rebuildable in about {max(seconds, 0.1):.1f} s"


def a(kind: str) -> str:
    """A kind of artefact with its article."""
    return f"an {kind}" if kind == "adapter" else f"a {kind}"
