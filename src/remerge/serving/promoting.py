"""A name such as ``production`` moved to an artefact, once it was shown that it deserves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remerge.artefacts.names import check_name
from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.moving import Moving, move_ref
from remerge.artefacts.store.rebuilding import Means
from remerge.artefacts.store.refs import check_free, read_ref, resolve
from remerge.artefacts.store.transactions import settle
from remerge.errors import BadInput, RemergeError, UsageError
from remerge.serving import promotion_steps
from remerge.serving.laid_out import ARTEFACT
from remerge.serving.promotion import Asking, Do, Found, Plan, Report, Work

if TYPE_CHECKING:
    from remerge.serving.promotion import Findings

State = Literal["passed", "failed", "skipped", "reused", "not run"]


@dataclass(frozen=True)
class _Entry:
    """A step by its name, in words, what it would do and what does it."""

    name: str
    title: str
    plan: Plan
    do: Do
    may_be_skipped: bool = False


# In this order; the move comes after them.
_STEPS = (
    _Entry("verify", "bytes and derivation", promotion_steps.plan_verify, promotion_steps.verify),
    _Entry("compare", "compare gate", promotion_steps.plan_compare, promotion_steps.compare, True),
    _Entry("check", "engine check", promotion_steps.plan_check, promotion_steps.check, True),
)
_MOVE = "move"
STEPS = (*(entry.name for entry in _STEPS), _MOVE)
SKIPPABLE = tuple(entry.name for entry in _STEPS if entry.may_be_skipped)


@dataclass(frozen=True)
class Step:
    """A step of a promotion: ``number`` of how many, what became of it, and what it found. In a dry
    run ``summary`` says what it would do, and nothing was run."""

    number: int
    of: int
    name: str
    title: str
    state: State
    summary: str
    seconds: float = 0.0
    findings: Findings | None = None


@dataclass(frozen=True)
class Promotion:
    """What was promoted: ``id`` is the artefact's, ``was`` what the name named before (None where
    it was free). ``moved`` is false in a dry run, and where the name was there ``already``."""

    target: str
    id: str
    to: str
    was: str | None
    steps: tuple[Step, ...]
    moved: bool
    already: bool = False
    dry_run: bool = False


def _told_nothing(step: Step) -> None:
    pass


def _silent(step: str) -> Report:
    return lambda done, total, what: None


def promote(
    store: Store,
    target: str,
    to: str,
    asking: Asking,
    means: Means,
    *,
    dry_run: bool = False,
    told: Callable[[Step], None] = _told_nothing,
    report: Callable[[str], Report] = _silent,
) -> Promotion:
    """Show that the artefact is what it should be, then point the name ``to`` to it.

    ``told`` hears of every step when it ends, also of those that are not run any more. At the first
    step that fails nothing is moved, and its error is raised, naming it: `IntegrityError` for bytes
    that are others, `NotReproduced` for a derivation or a gate that does not hold, `BadInput` for
    what an engine cannot load. Raises `Locked` where ``to`` was changed meanwhile.
    """
    check_name(to)
    _check_skips(asking.skip)
    settle(store)
    artefact = _artefact(store, target)
    was = read_ref(store, to)
    if was == artefact:
        return Promotion(target, artefact, to, was, (), moved=False, already=True, dry_run=dry_run)
    # What cannot be moved in the end need not be looked at for minutes.
    check_free(store, to, artefact, move=True)
    before = was or None
    with blobs.staging(store) as place:
        work = Work(store, artefact, target.removeprefix("sha256:"), place, asking, means)
        if dry_run:
            steps = tuple(_foreseen(work, to, before))
            for step in steps:
                told(step)
            return Promotion(target, artefact, to, before, steps, moved=False, dry_run=True)
        _check_asked(work)
        steps, found = _shown(work, told, report)
        number = len(STEPS)
        moving = Moving(
            "promote",
            to,
            artefact,
            was,
            _for_the_log(target, steps, found, asking),
            kept=[one for each in found for one in each.documents],
            attached=[one for each in found for one in each.attached],
            proof=next((one.proof for one in found if one.proof), None),
            restored=[one for each in found for one in each.restored],
        )
        started = time.monotonic()
        try:
            moved = move_ref(store, moving)
        except RemergeError as error:
            told(_step(number, _MOVE, "the name", "failed", error.what))
            raise _refusal(error, number, "the name", work) from error
    summary = f"{to}: {_short(before)} -> {artefact[:12]}"
    if not moved:
        summary = f"{to} names it already: somebody else promoted it meanwhile"
    last = _step(number, _MOVE, "the name", "passed", summary)
    last = replace(last, seconds=round(time.monotonic() - started, 3))
    told(last)
    return Promotion(target, artefact, to, before, (*steps, last), moved=moved, already=not moved)


def _artefact(store: Store, target: str) -> str:
    try:
        return resolve(store, target)
    except (BadInput, UsageError) as error:
        if not Path(target).exists():
            raise
        raise UsageError(
            f"{target} is a path; what is promoted is in the store {store}.",
            why="A name there can be moved back, and what it names is made again where it is lost.",
            hint=f"Add it, and promote the name that it gets: remerge store add {target}.",
        ) from error


def _check_asked(work: Work) -> None:
    """What is asked wrongly of a step is refused before the first one takes its minutes."""
    for number, entry in enumerate(_STEPS, 1):
        if entry.name in work.asking.skip:
            continue
        try:
            entry.plan(work)
        except UsageError as error:
            raise _refusal(error, number, entry.title, work) from error
        except RemergeError:
            # The artefact's own fault, which its step names.
            return


def _shown(
    work: Work, told: Callable[[Step], None], report: Callable[[str], Report]
) -> tuple[tuple[Step, ...], list[Found]]:
    """All steps before the move; raises at the first that fails."""
    steps: list[Step] = []
    found: list[Found] = []
    for number, entry in enumerate(_STEPS, 1):
        started = time.monotonic()
        refused: RemergeError | None = None
        if entry.name in work.asking.skip:
            reason = work.asking.skip[entry.name]
            one = Found(f"NOT DONE, as asked: {reason}", "skipped", shown={"reason": reason})
        else:
            try:
                one = entry.do(work, report(entry.name))
                refused = one.refused
            except RemergeError as error:
                one, refused = Found(_plain(error.what, work), "failed"), error
        step = _step(number, entry.name, entry.title, one.state, one.summary)
        seconds = round(time.monotonic() - started, 3)
        step = replace(step, seconds=seconds, findings=one.findings)
        told(step)
        if refused is not None:
            _tell_the_rest(number, told)
            raise _refusal(refused, number, entry.title, work) from refused
        steps.append(step)
        found.append(one)
    return tuple(steps), found


def _tell_the_rest(after: int, told: Callable[[Step], None]) -> None:
    titles = [entry.title for entry in _STEPS] + ["the name"]
    for number in range(after + 1, len(STEPS) + 1):
        told(_step(number, STEPS[number - 1], titles[number - 1], "not run", ""))


def _foreseen(work: Work, to: str, was: str | None) -> list[Step]:
    """What each step would do; raises what asking for it wrongly raises."""
    steps: list[Step] = []
    for number, entry in enumerate(_STEPS, 1):
        if entry.name in work.asking.skip:
            summary = f"would NOT be done: {work.asking.skip[entry.name]}"
        else:
            summary = entry.plan(work)
        steps.append(_step(number, entry.name, entry.title, "not run", summary))
    summary = f"{to}: {_short(was)} -> {work.artefact[:12]}, and a line in the log"
    return [*steps, _step(len(STEPS), _MOVE, "the name", "not run", summary)]


def _check_skips(skip: Mapping[str, str]) -> None:
    for name, reason in skip.items():
        if name not in SKIPPABLE:
            why = "It is what makes a promotion one." if name in STEPS else None
            raise UsageError(
                f"The step {name} cannot be left out."
                if name in STEPS
                else f"A promotion has no step {name!r}.",
                why=why,
                hint=f"These can: {', '.join(SKIPPABLE)}.",
            )
        if not reason.strip():
            raise UsageError(
                f"The step {name} is not left out without a reason.",
                why="The log keeps it for whoever asks later.",
                hint="Give one: --reason TEXT.",
            )


def _for_the_log(
    target: str, steps: tuple[Step, ...], found: list[Found], asking: Asking
) -> dict[str, Any]:
    """What was shown, for one line of the log; what was left out stands there by itself."""
    line: dict[str, Any] = {
        "promoted": target,
        "steps": {
            step.name: {"state": step.state, **one.shown}
            for step, one in zip(steps, found, strict=True)
        },
    }
    return {**line, "skipped": dict(asking.skip)} if asking.skip else line


def _refusal(error: RemergeError, number: int, title: str, work: Work) -> RemergeError:
    """The same failure, by the step that it is of."""
    what = f"Refused at step {number} of {len(STEPS)}, {title}: {_plain(error.what, work)}"
    said = [None if text is None else _plain(text, work) for text in (error.why, error.hint)]
    # What was asked wrongly is no fault of the artefact.
    look = "" if isinstance(error, UsageError) else f" Look at it: remerge store show {work.name}."
    hint = said[1] or f"Nothing was moved.{look}"
    return type(error)(what, why=said[0], hint=hint)


def _plain(text: str, work: Work) -> str:
    """Without the place where it lay for the while."""
    return text.replace(f"{work.place / ARTEFACT}/", "").replace(f"{work.place}/", "")


def _step(number: int, name: str, title: str, state: State, summary: str) -> Step:
    return Step(number, len(STEPS), name, title, state, summary)


def _short(artefact: str | None) -> str:
    return "(new)" if artefact is None else artefact[:12]


def document(step: Step) -> dict[str, Any]:
    """A step as JSON data."""
    from remerge.validation.check import CheckReport
    from remerge.validation.check import document as of_check
    from remerge.validation.compare import CompareReport

    found: dict[str, Any] | None = None
    if isinstance(step.findings, CheckReport):
        found = of_check(step.findings)
    elif isinstance(step.findings, CompareReport):
        found = step.findings.figures.model_dump(mode="json")
    elif step.findings is not None:
        found = {**asdict(step.findings), "output": str(step.findings.output)}
    return {
        "step": step.number,
        "name": step.name,
        "title": step.title,
        "state": step.state,
        "seconds": step.seconds,
        "summary": step.summary,
        "findings": found,
    }
