"""Names moved to what deserves them, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remerge.api.options import Source, device_of, silent
from remerge.artefacts.making import Report
from remerge.artefacts.store.layout import open_store
from remerge.artefacts.store.rebuilding import Means

if TYPE_CHECKING:
    from remerge.serving.promoting import Promotion, Step
    from remerge.serving.rolling_back import Past, RolledBack


def untold(step: Step) -> None:
    pass


def _silent(step: str) -> Report:
    return silent


def promote(
    target: str,
    to: str = "production",
    *,
    store: Source | None = None,
    gate: Mapping[str, Any] | None = None,
    form: str | None = None,
    engine: str | None = None,
    anew: bool = False,
    skip: Sequence[str] = (),
    reason: str = "",
    dry_run: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    engine_python: Mapping[str, str] | None = None,
    told: Callable[[Step], None] = untold,
    report: Callable[[str], Report] = _silent,
) -> Promotion:
    """Verify a stored artefact, compare it, load it in its engine, and only then point the name
    ``to`` to it (docs/promote.md).

    ``gate`` is that of `compare`; a recorded comparison that says as much is taken, unless
    ``anew``. ``engine`` is who will serve it. ``skip`` leaves out ``compare`` or ``check``, for a
    ``reason`` that the log keeps. ``told`` hears of every step, ``report`` gives the progress of
    one by its name. Raises the error of the first step that fails, with nothing moved.
    """
    from remerge.serving import promoting
    from remerge.serving.promotion import Asking

    asking = Asking(
        gate=dict(gate or {}),
        form=form,
        engine=engine,
        anew=anew,
        skip=dict.fromkeys(skip, reason),
    )
    means = Means(device_of(device), threads, dict(engine_python or {}))
    opened = open_store(store)
    return promoting.promote(
        opened, target, to, asking, means, dry_run=dry_run, told=told, report=report
    )


def rollback(
    of: str = "production",
    *,
    to: int | str = 1,
    store: Source | None = None,
    device: str = "cpu",
    threads: int | None = None,
    engine_python: Mapping[str, str] | None = None,
    report: Report = silent,
) -> RolledBack:
    """Point a name back to what it named before: ``to`` moves ago, or the artefact that is meant.

    Its bytes are read first, and derived again where they were collected. Raises where they are
    damaged, with nothing moved.
    """
    from remerge.serving import rolling_back

    means = Means(device_of(device), threads, dict(engine_python or {}), report)
    return rolling_back.roll_back(open_store(store), of, to, means, report=report)


def past(of: str = "production", *, store: Source | None = None) -> list[Past]:
    """Everything that a name named, the newest first, with how many moves lead back to it."""
    from remerge.serving import rolling_back

    return rolling_back.past_of(open_store(store), of)
