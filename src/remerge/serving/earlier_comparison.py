"""A comparison that was recorded before, where it says all that one made now would: of exactly
these bytes, by a gate at least as strict.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remerge.artefacts.digests import file_digest
from remerge.artefacts.manifest import CARD, MANIFEST, PROVENANCE
from remerge.artefacts.store import blobs
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Record, State
from remerge.artefacts.test_result import TESTS, Statement, TaskResult, read_statement
from remerge.errors import UsageError
from remerge.validation.comparison_asked import Asked
from remerge.validation.paired import mcnemar, score_gate

# A smaller set of questions cannot fail (docs/compare.md).
_FEWEST = 6
_ROUNDING = 1e-9
# What a comparison asks otherwise than one made now would.
_OTHERWISE = ("no-chat", "max-tokens", "answer-tokens", "endpoint", "engine", "format", "dtype")


@dataclass(frozen=True)
class Earlier:
    """A recorded comparison, with the digest of its statement."""

    statement: Statement
    sha256: str


def earlier_comparison(
    store: Store, record: Record, state: State, asked: Asked, form: str | None, engine: str
) -> Earlier | None:
    """The newest recorded comparison that makes another one needless; None where there is none.

    ``form`` is the format whose limits hold, ``engine`` who would run the artefact. A comparison of
    other bytes, one that failed, and one whose gate let more pass count for nothing.
    """
    found = [
        one
        for one in _recorded(store, state)
        if _of_these_bytes(one.statement, record) and _as_strict(one.statement, asked, form, engine)
    ]
    return max(found, key=lambda one: one.statement.predicate.figures.started, default=None)


def _recorded(store: Store, state: State) -> Iterator[Earlier]:
    for file in state.attached:
        path = blobs.find(store, file.sha256)
        if f"{TESTS}/" in file.name and path is not None and blobs.is_whole(store, file.sha256):
            yield Earlier(read_statement(path), file.sha256)


def _of_these_bytes(statement: Statement, record: Record) -> bool:
    judged = {(subject.name, subject.digest.sha256) for subject in statement.subject}
    if record.single is not None:
        # A file that was renamed is still that file.
        own = {file.sha256 for file in record.files if file.name == record.single}
        return {sha256 for _, sha256 in judged} == own
    about = (CARD, MANIFEST, PROVENANCE)
    own = {
        (file.name, file.sha256)
        for file in record.files
        if file.name not in about and not file.name.startswith(".")
    }
    return judged == own


def _as_strict(statement: Statement, asked: Asked, form: str | None, engine: str) -> bool:
    """Whether all held that would be asked now, going by the figures where limits are numbers."""
    figures = statement.predicate.figures
    passed = figures.verdict == "passed" and statement.predicate.result == "PASSED"
    if not passed or not figures.gates or not all(gate.passed for gate in figures.gates):
        return False
    if (figures.engine, figures.dtype, figures.format) != (engine, asked.dtype, form):
        return False
    said = _options(figures.command)
    if said is None or not all(map(_adds_up, figures.tasks)):
        return False
    gate, thresholds = asked.gate, asked.thresholds
    if any(option in said for option in _OTHERWISE) or said.get("scorer") != gate.get("scorer"):
        return False
    most = gate.get("limit")
    if "limit" in said and (most is None or _number(said["limit"]) < most):
        return False
    for option, limit in (
        ("max-kl", thresholds.max_kl),
        ("min-agreement", thresholds.min_agreement),
    ):
        # Its own limit took the place of the format's, and may have been wider.
        if limit is None and option in said:
            return False
    if thresholds.max_kl is not None:
        limit = thresholds.max_kl
        if not figures.logits or any(one.kl_mean > limit for one in figures.logits):
            return False
    if thresholds.min_agreement is not None:
        limit = thresholds.min_agreement
        if not figures.logits or any(one.top1 < limit for one in figures.logits):
            return False
    if not all(score_gate(task, thresholds.max_drop).passed for task in figures.tasks):
        return False
    return _asked_as_much(statement, asked)


def _asked_as_much(statement: Statement, asked: Asked) -> bool:
    """Whether the same questions and texts were asked, and maybe more."""
    figures, asking = statement.predicate.figures, asked.asking
    judged_by = {one.digest.sha256 for one in statement.predicate.configuration}
    tasks = {task.name for task in figures.tasks}
    texts = {one.name for one in figures.logits}
    for evaluation in asking.evaluations:
        if evaluation.name not in tasks or _digest(evaluation.path) not in judged_by:
            return False
    for name, path in (("text", asking.text), ("prompts", asking.prompts)):
        if path is not None and (name not in texts or _digest(path) not in judged_by):
            return False
    if asking.evaluations or asking.text or asking.prompts:
        return True
    # Nothing is asked for: what comes with remerge, or questions.
    return "built-in" in texts or any(task.questions >= _FEWEST for task in figures.tasks)


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def _options(command: str) -> Mapping[str, str] | None:
    """The options of the command that a comparison recorded, each with what follows it; None for
    what is no command."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    following = [*words[1:], ""]
    return {
        word[2:]: after
        for word, after in zip(words, following, strict=True)
        if word.startswith("--")
    }


def _number(text: str) -> int:
    """Zero for what is none: it asks less than anything."""
    return int(text) if text.isascii() and text.isdecimal() else 0


def _adds_up(task: TaskResult) -> bool:
    """Whether a score's figures are of one comparison: they lie in a file that people can edit."""
    drop = task.merged.value - task.adapter.value
    return (
        task.lost + task.won <= task.questions
        and abs(drop - task.delta.value) <= _ROUNDING
        and abs(mcnemar(task.lost, task.won) - task.p_value) <= _ROUNDING
    )
